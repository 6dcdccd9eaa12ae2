"""Jobs: accepted, looked at, cancelled."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from common import subjects
from common.acceptance import is_whole
from common.bus import Bus
from common.cancelling import cancel_job
from common.errors import InvalidArguments, PayloadTooLarge, TooManyJobs, UnknownJob
from common.feed import StoredEvent
from common.schema import Event, Job, now_ms
from gateway.admission import Admission
from gateway.catalog_view import CatalogView
from gateway.idempotency import claim, fingerprint
from gateway.queue_positions import QueuePositions
from gateway.store import Store

MESSAGE_HEADERS_BYTES: Final = 4_096
"""Kept free for the headers of a job's message, which count towards NATS's max_payload."""
CHECKED_IN_PLACE_BYTES: Final = 16_384
"""A job above this is held to its tool's schema in a thread: jsonschema takes about a second for a megabyte."""
OUTCOME_FIELDS: Final = ("outcome", "result", "error", "timings", "output")


class Jobs:
    """The jobs of all sessions. Callers have made sure that the session is theirs."""

    def __init__(
        self,
        store: Store,
        catalog: CatalogView,
        admission: Admission,
        positions: QueuePositions,
        default_timeout_ms: int,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._admission = admission
        self._positions = positions
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
        idempotency_key: str | None = None,
        artifact: bool = False,
        record: bool = False,
    ) -> dict[str, Any]:
        """Accept a call: when this returns the store has it, and exactly one `result` event will follow.

        Raises:
            RateLimited: if the tenant calls faster than it may.
            IdempotencyKeyReused: if the key stands for another call of the session.
            UnknownServer, ServerNotReady, UnknownTool, InvalidArguments: nothing was stored.
            PayloadTooLarge: if it exceeds what one message of the store can hold.
            TooManyJobs: if the session has as many jobs as it may, over all servers.
            QueueFull: if it has as many on that server as it may.
            StoreUnavailable: if the store did not confirm.
        """
        bus = self._store.bus
        self._admission.count_call(tenant)
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
            start_by_ms=now + int(spec.queue_s(tool) * 1000),
            timeout_ms=spec.timeout_ms(tool, self._default_timeout_ms),
            heartbeat_ms=spec.heartbeat_ms(tool),
            artifact=artifact,
            record=record,
        )
        size = _fitting_size(bus, job)
        if size > CHECKED_IN_PLACE_BYTES:
            await asyncio.to_thread(tools.check, tool, arguments)
        else:
            tools.check(tool, arguments)
        return await self._accept(bus, job, idempotency_key, traceparent, size)

    async def begin_turn(self, job: Job, *, traceparent: str | None, idempotency_key: str | None) -> dict[str, Any]:
        """Accept a chat turn.

        Raises:
            TurnInProgress: if another one of the session waits or runs.
            RateLimited, IdempotencyKeyReused, PayloadTooLarge, TooManyJobs, StoreUnavailable: as `call()`.
        """
        bus = self._store.bus
        self._admission.count_call(job.tenant)
        return await self._accept(bus, job, idempotency_key, traceparent, _fitting_size(bus, job))

    async def _accept(
        self, bus: Bus, job: Job, idempotency_key: str | None, traceparent: str | None, size: int
    ) -> dict[str, Any]:
        if idempotency_key is not None:
            return await self._call_once(bus, job, idempotency_key, traceparent, size)
        async with self._admission.place(job.session):
            return await self._enqueue(bus, job, traceparent, size)

    async def submit(self, job: Job) -> dict[str, Any]:
        """Accept a job that the caller has checked, and has a place for.

        Raises:
            PayloadTooLarge, QueueFull, StoreUnavailable: as `call()`.
        """
        bus = self._store.bus
        return await self._enqueue(bus, job, None, _fitting_size(bus, job))

    async def _call_once(self, bus: Bus, job: Job, key: str, traceparent: str | None, size: int) -> dict[str, Any]:
        """Accept a job unless the key stands for one that was."""
        print_ = fingerprint(job.server, job.tool, job.arguments, artifact=job.artifact)
        id_, is_new = await claim(bus, job.session, key, print_)
        known = None if is_new else await bus.queued_event(job.session, id_)
        once = job.model_copy(update={"id": id_})
        if known is None:
            try:
                async with self._admission.place(job.session):
                    return await self._enqueue(bus, once, traceparent, size)
            except TooManyJobs:
                # A call with the same key may have got the last place just now.
                known = await bus.queued_event(job.session, id_)
                if known is None:
                    raise
        if is_whole(known, job):
            return {"job": id_, "seq": known.seq}
        return await self._enqueue(bus, once, traceparent, size)

    async def _enqueue(self, bus: Bus, job: Job, traceparent: str | None, size: int) -> dict[str, Any]:
        accepted = await bus.enqueue_job(job, traceparent)
        self._positions.add(job, accepted.job_seq, size)
        return {"job": job.id, "seq": accepted.seq}

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
        state, _ = await cancel_job(self._store.bus, session, job)
        return {"job": job, "state": state}

    async def cancel_all(self, session: str) -> list[str]:
        """Cancel what waits or runs, and what other gateways accept meanwhile; the ids of those jobs."""
        cancelled: list[str] = []
        seen: set[str] = set()
        while found := [job for job in await self._store.bus.unfinished_jobs(session) if job not in seen]:
            seen.update(found)
            for job in found:
                try:
                    _, asked = await cancel_job(self._store.bus, session, job)
                except UnknownJob:
                    continue  # its events are past the resume window
                if asked:
                    cancelled.append(job)
        return cancelled


def _fitting_size(bus: Bus, job: Job) -> int:
    """Bytes of the job's message.

    Raises:
        PayloadTooLarge: if the store does not take it.
    """
    size, limit = _size(job), bus.max_payload - MESSAGE_HEADERS_BYTES
    if size > limit:
        raise PayloadTooLarge(size, limit)
    return size


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
