"""Chat turns: accepted one at a time for each session, and told whether the calls that they ask leave for may run."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from common import subjects
from common.bus import Bus
from common.chat_errors import AlreadyDecided, TurnInProgress, UnknownCall
from common.errors import Fenced
from common.job_queue import job_of
from common.schema import Event, Job, now_ms
from gateway.jobs import Jobs
from gateway.store import Store

CHAT_QUEUE_S: Final = 600.0
"""Schedule-to-start of a turn."""
MAX_CONTENT_CHARS: Final = 500_000
SETTLED_WITHIN_S: Final = 5.0
"""How long a turn that has ended may still be in the queue: its worker acknowledges it after its last event."""
LOOK_AGAIN_S: Final = 0.05


class ChatWaits:
    """How long turns may wait."""

    shortest_queue_s = CHAT_QUEUE_S

    def queue_s(self, tool: str) -> float:
        return CHAT_QUEUE_S


class Chat:
    """Callers have made sure that the session is theirs."""

    def __init__(self, store: Store, jobs: Jobs, turn_timeout_ms: int, call_timeout_ms: int) -> None:
        self._store = store
        self._jobs = jobs
        self._turn_timeout_ms = turn_timeout_ms
        self._call_timeout_ms = call_timeout_ms

    async def send(
        self, *, tenant: str, session: str, content: str, traceparent: str | None, idempotency_key: str | None
    ) -> dict[str, Any]:
        """Accept a turn that answers `content`; its text, its calls and its end follow as events.

        Raises:
            TurnInProgress: if another one of the session waits or runs; nothing was stored.
            RateLimited, IdempotencyKeyReused, PayloadTooLarge, TooManyJobs, StoreUnavailable: as `Jobs.call()`.
        """
        now = now_ms()
        turn = Job(
            id=subjects.new_job_id(),
            session=session,
            tenant=tenant,
            server=subjects.CHAT,
            tool="send",
            kind="chat",
            arguments={"content": content, "call_timeout_ms": self._call_timeout_ms},
            created_ms=now,
            start_by_ms=now + int(CHAT_QUEUE_S * 1000),
            timeout_ms=self._turn_timeout_ms,
        )
        give_up_at = asyncio.get_running_loop().time() + SETTLED_WITHIN_S
        while True:
            try:
                return await self._jobs.begin_turn(turn, traceparent=traceparent, idempotency_key=idempotency_key)
            except TurnInProgress as exc:
                ended = await _has_ended(self._store.bus, session, exc.data["job"])
                if not ended or asyncio.get_running_loop().time() >= give_up_at:
                    raise
            await asyncio.sleep(LOOK_AGAIN_S)

    async def decide(self, session: str, call: str, *, approved: bool) -> dict[str, Any]:
        """Let a call that the session's turn asks leave for run, or not. The same decision may be repeated.

        Raises:
            UnknownCall: if no turn that runs asks for it.
            AlreadyDecided: if it was decided the other way.
            StoreUnavailable: if the store did not confirm; it may be repeated.
        """
        bus = self._store.bus
        turn = await _turn_that_asks(bus, session, call)
        event = Event(
            job=call,
            session=session,
            attempt=0,
            type="decision",
            time_ms=now_ms(),
            data={"approved": approved, "turn": turn},
        )
        try:
            await bus.publish_event(event, expected=0)
        except Fenced as exc:
            known = await bus.decision(session, call)
            if known is not None and known != approved:
                raise AlreadyDecided(call, known) from exc
        return {"job": call, "approved": approved}


async def _has_ended(bus: Bus, session: str, turn: str) -> bool:
    """A turn that left the queue in the meantime has, too."""
    newest = await bus.last_event(session, turn) if turn else None
    return newest is None or newest.event.terminal


async def _turn_that_asks(bus: Bus, session: str, call: str) -> str:
    """
    Raises:
        UnknownCall: if there is none.
    """
    async for msg in bus.jobs_in_queue(subjects.jobs(subjects.CHAT, session)):
        turn = job_of(msg)
        async for stored in bus.job_events(session, turn):
            if stored.event.type == "step" and any(
                asked["job"] == call and asked.get("ask") for asked in stored.event.data["calls"]
            ):
                return turn
    raise UnknownCall(call)
