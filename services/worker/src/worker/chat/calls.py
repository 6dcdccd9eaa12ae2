"""The calls of a turn: jobs of their own in the same session, accepted once, followed to their end, or ended."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

from common.acceptance import accept_once
from common.bus import Bus
from common.cancelling import cancel_job
from common.conversations.message import Message
from common.errors import PayloadTooLarge, QueueFull, ServiceError, StoreUnavailable, UnknownJob
from common.log import get
from common.schema import Event, Job, now_ms
from worker.chat.story import patiently
from worker.chat.toolbox import ChatTool
from worker.recording import message_of

_log = get(__name__)

ENDED_WITHIN_S: Final = 15.0
"""How long calls that were cancelled are waited for."""
FOLLOW_RETRY_S: Final = 0.5


def call_id(turn: str, step: int, index: int) -> str:
    """The id of a call's job: told by its place in the turn, so that a turn that is delivered again finds its calls.

    It begins with the turn's milliseconds, as the turn's own does.
    """
    return turn[:12] + hashlib.sha256(f"{turn}.{step}.{index}".encode()).hexdigest()[:12]


class Calls:
    """Of one attempt of a turn. What it waits for comes while `following()`."""

    def __init__(self, bus: Bus, turn: Job, traceparent: str | None) -> None:
        self._bus = bus
        self._turn = turn
        self._traceparent = traceparent
        self._after: int | None = None
        self._ends: dict[str, asyncio.Future[Event]] = {}
        self._decisions: dict[str, asyncio.Future[bool]] = {}

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Hear of the session's events while the context is open."""
        if self._after is None:
            self._after = await patiently("reading its session", lambda: self._bus.newest_event_seq(self._turn.session))
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(self._follow(self._after))
            try:
                yield
            finally:
                task.cancel()

    async def _follow(self, after: int) -> None:
        while True:
            try:
                async with self._bus.subscribe_session(self._turn.session, after) as feed:
                    async for stored in feed:
                        after = stored.seq
                        self._hear(stored.event)
            except StoreUnavailable as exc:
                _log.warning("calls of a turn cannot be followed, retrying", turn=self._turn.id, reason=exc.message)
            await asyncio.sleep(FOLLOW_RETRY_S)

    def _hear(self, event: Event) -> None:
        if event.terminal and (end := self._ends.get(event.job)) and not end.done():
            end.set_result(event)
        if event.type == "decision" and (decision := self._decisions.get(event.job)) and not decision.done():
            decision.set_result(event.data.get("approved") is True)

    # --- one call -------------------------------------------------------------------------------------

    async def run(self, id_: str, tool: ChatTool, arguments: dict[str, Any], call_timeout_ms: int) -> Message:
        """The message of its result, once it has ended; waits for the user where the tool asks for that.

        A job that was accepted before is only followed.
        """
        loop = asyncio.get_running_loop()
        end = self._ends.setdefault(id_, loop.create_future())
        newest = await patiently("looking for a call", lambda: self._bus.last_event(self._turn.session, id_))
        if newest is None and tool.asks and not await self._approved(id_):
            return {**_about(id_, tool), "outcome": "denied", "content": [_text("the user denied this call")]}
        job = self._job(id_, tool, arguments, call_timeout_ms)
        if newest is None:
            try:
                await patiently("having a call accepted", lambda: accept_once(self._bus, job, self._traceparent))
            except (QueueFull, PayloadTooLarge) as exc:
                return not_called(id_, tool, exc)
        # Shielded, as its end is waited for once more where the turn is cancelled.
        event = newest.event if newest is not None and newest.event.terminal else await asyncio.shield(end)
        return self._result(job, event)

    async def _approved(self, id_: str) -> bool:
        decision = self._decisions.setdefault(id_, asyncio.get_running_loop().create_future())
        known = await patiently("looking for a decision", lambda: self._bus.decision(self._turn.session, id_))
        return await decision if known is None else known

    def _job(self, id_: str, tool: ChatTool, arguments: dict[str, Any], call_timeout_ms: int) -> Job:
        now = now_ms()
        return Job(
            id=id_,
            session=self._turn.session,
            tenant=self._turn.tenant,
            server=tool.server,
            tool=tool.tool,
            arguments=arguments,
            created_ms=now,
            start_by_ms=now + int(tool.spec.queue_s(tool.tool) * 1000),
            timeout_ms=tool.spec.timeout_ms(tool.tool, call_timeout_ms),
            heartbeat_ms=tool.spec.heartbeat_ms(tool.tool),
        )

    async def ended(self, id_: str, tool: ChatTool, arguments: dict[str, Any]) -> Message | None:
        """The message of its result, if it has one by now."""
        newest = await self._bus.last_event(self._turn.session, id_)
        if newest is None or not newest.event.terminal:
            return None
        return self._result(self._job(id_, tool, arguments, 1), newest.event)

    def _result(self, job: Job, end: Event) -> Message:
        return message_of(job, end) | {"whole": _whole(job, end)}

    # --- their end ------------------------------------------------------------------------------------

    async def end(self, ids: Iterable[str]) -> None:
        """Cancel what of them waits or runs. Returns when all have ended, or after ENDED_WITHIN_S."""
        loop = asyncio.get_running_loop()
        running = []
        for id_ in ids:
            end = self._ends.setdefault(id_, loop.create_future())
            try:
                _, asked = await cancel_job(self._bus, self._turn.session, id_)
            except UnknownJob:
                continue  # it never became a job
            if asked and not end.done():
                running.append(end)
        if running:
            _, late = await asyncio.wait(running, timeout=ENDED_WITHIN_S)
            if late:
                _log.warning("calls of a turn have not ended yet", turn=self._turn.id, calls=len(late))


def not_called(id_: str, tool: ChatTool | None, why: ServiceError) -> Message:
    """The message of a call that did not become a job."""
    about = _about(id_, tool) if tool else {"role": "tool", "job": id_}
    return {**about, "outcome": "failed", "content": [], "error": why.as_dict()}


def _about(id_: str, tool: ChatTool) -> Message:
    return {"role": "tool", "job": id_, "server": tool.server, "tool": tool.tool}


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _whole(job: Job, end: Event) -> str:
    """Where what a model is told only in part can be read whole."""
    for told in (end.data.get("output") or {}).values():
        if "artifact" in told:
            return str(told["artifact"]["uri"])
    return f"/v1/sessions/{job.session}/jobs/{job.id}"
