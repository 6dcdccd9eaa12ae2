"""Jobs: accepted, looked at, cancelled."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from common import metrics, subjects
from common.bus import Bus
from common.errors import Fenced, InvalidArguments, PayloadTooLarge, StoreUnavailable, UnknownJob
from common.feed import StoredEvent
from common.log import get
from common.schema import Event, Job, now_ms
from gateway.catalog_view import CatalogView
from gateway.store import Store

_log = get(__name__)

MESSAGE_HEADERS_BYTES: Final = 4_096
"""Kept free for the headers of a job's message, which count towards NATS's max_payload."""
CHECKED_IN_PLACE_BYTES: Final = 16_384
"""A job above this is held to its tool's schema in a thread: jsonschema takes about a second for a megabyte."""
OUTCOME_FIELDS: Final = ("outcome", "result", "error", "timings")


class Jobs:
    """The jobs of all sessions. Callers have made sure that the session is theirs."""

    def __init__(self, store: Store, catalog: CatalogView, default_timeout_ms: int) -> None:
        self._store = store
        self._catalog = catalog
        self._default_timeout_ms = default_timeout_ms

    async def call(
        self,
        *,
        tenant: str,
        session: str,
        server: str,
        tool: str,
        arguments: dict[str, Any],
        meta: dict[str, Any],
        traceparent: str | None,
    ) -> dict[str, Any]:
        """Accept a call: when this returns the store has it, and exactly one `result` event will follow.

        Raises:
            UnknownServer, ServerNotReady, UnknownTool, InvalidArguments: nothing was stored.
            PayloadTooLarge: if it exceeds what one message of the store can hold.
            QueueFull: if the session has as many jobs on that server as it may.
            StoreUnavailable: if the store did not confirm.
        """
        bus = self._store.bus
        spec = self._catalog.server(server)
        tools = self._catalog.tools(server)
        tools.require(tool)
        now = now_ms()
        job = Job(
            id=subjects.new_job_id(),
            session=session,
            tenant=tenant,
            server=server,
            tool=tool,
            arguments=arguments,
            meta=meta,
            created_ms=now,
            start_by_ms=now + int(spec.timeouts.queue_s * 1000),
            timeout_ms=spec.timeout_ms(tool, self._default_timeout_ms),
        )
        size = _size(job)
        limit = bus.max_payload - MESSAGE_HEADERS_BYTES
        if size > limit:
            raise PayloadTooLarge(size, limit)
        if size > CHECKED_IN_PLACE_BYTES:
            await asyncio.to_thread(tools.check, tool, arguments)
        else:
            tools.check(tool, arguments)
        seq = await bus.enqueue_job(job, traceparent)
        return {"job": job.id, "seq": seq}

    async def get(self, session: str, job: str) -> dict[str, Any]:
        """The job as its newest event tells it.

        Raises:
            UnknownJob: if the session has none of that id, or its events are past the resume window.
        """
        bus = self._store.bus
        newest = await _newest(bus, session, job)
        event = newest.event
        queued = event if event.type == "queued" else await _queued(bus, session, job)
        found = {
            "job": job,
            "state": event.type,
            "attempt": event.attempt,
            "seq": newest.seq,
            "server": queued.data.get("server") if queued else None,
            "tool": queued.data.get("tool") if queued else None,
        }
        if event.terminal:
            found |= {name: event.data[name] for name in OUTCOME_FIELDS if name in event.data}
        return found

    async def cancel(self, session: str, job: str) -> dict[str, Any]:
        """End a queued job now, ask the worker of a running one to end it, leave a finished one as it is.

        Raises:
            UnknownJob: as `get()`.
        """
        state, _ = await self._cancel(session, job)
        return {"job": job, "state": state}

    async def cancel_all(self, session: str) -> list[str]:
        """Cancel what waits or runs; the ids of those jobs."""
        cancelled = []
        for job in await self._store.bus.unfinished_jobs(session):
            try:
                _, asked = await self._cancel(session, job)
            except UnknownJob:
                continue  # its events are past the resume window
            if asked:
                cancelled.append(job)
        return cancelled

    async def _cancel(self, session: str, job: str) -> tuple[str, bool]:
        """The job's state after the attempt, and whether there was something to cancel."""
        bus = self._store.bus
        newest = await _newest(bus, session, job)
        if newest.event.type == "queued":
            try:
                await _end_queued(bus, newest)
            except Fenced:
                # A worker's `started` came first: the fence decided, and the worker ends the job.
                newest = await _newest(bus, session, job)
            else:
                return "result", True
        if newest.event.terminal:
            return newest.event.type, False
        await bus.publish(subjects.cancel(session, job))
        return newest.event.type, True


def _size(job: Job) -> int:
    """Bytes of the job's message.

    Raises:
        InvalidArguments: if it holds a number or a depth that no message can.
    """
    try:
        return len(job.encode())
    except (ValueError, OverflowError) as exc:
        problem = {"path": "$", "message": f"cannot be stored: {exc}"}
        raise InvalidArguments(f"arguments of {job.tool} cannot be used", [problem]) from exc


async def _newest(bus: Bus, session: str, job: str) -> StoredEvent:
    newest = await bus.last_event(session, job)
    if newest is None:
        raise UnknownJob(job)
    return newest


async def _queued(bus: Bus, session: str, job: str) -> Event | None:
    queued = await bus.queued_event(session, job)
    return queued.event if queued else None


async def _end_queued(bus: Bus, queued: StoredEvent) -> None:
    """Store `cancelled` as the first event after `queued`, then take the job out of the queue.

    Raises:
        Fenced: if another event came in between.
    """
    event = queued.event
    end = Event(
        job=event.job,
        session=event.session,
        attempt=event.attempt,
        type="result",
        time_ms=now_ms(),
        data={"outcome": "cancelled"},
    )
    await bus.publish_event(end, expected=queued.fence)
    server = event.data["server"]
    metrics.JOBS_ENDED.labels(server, "cancelled").inc()
    try:
        await bus.withdraw_job(server, event.session, event.job)
    except StoreUnavailable as exc:
        # It has ended all the same: the worker that gets it is refused its `started` by the fence.
        _log.info("cancelled job left in the queue", session=event.session, job=event.job, reason=exc.message)
