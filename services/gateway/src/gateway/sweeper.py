"""Ends the jobs that nobody else can end, so that every accepted job has its end also while no worker runs.

- A job that waits past its queue deadline ends `timed_out`.
- A job of a server that was removed from the catalog is dead-lettered.
- A job that had started, and that no worker took over for as long as it may run and wait, ends `outcome_unknown`.
- A `queued` event without a job, left by a gateway that died while it accepted the call, ends `failed`.

Every gateway has a sweeper, and one of them at a time works. Whatever it ends is fenced by the event that it was
decided by, so a worker that comes in between has it its way.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final, Protocol

from nats.js.api import RawStreamMsg

from common import headers, metrics, subjects
from common.bus import Bus
from common.consumer import read_job
from common.ending import Ending
from common.errors import Fenced, StoreUnavailable, UndecodableMessage
from common.feed import StoredEvent
from common.job_end import end_job, facts_of_queued
from common.job_errors import JobError, NotAccepted, OutcomeUnknown, QueueTimeout, ServerRemoved
from common.job_line import JobFacts
from common.job_queue import job_of
from common.job_state import Signal, State, state_after, step
from common.log import get
from common.role import Role
from common.schema import Event, now_ms
from common.streams import SERVERS_BUCKET
from common.subjects import CHAT
from gateway.catalog_view import CatalogView
from gateway.chat import ChatWaits
from gateway.store import Store

_log = get(__name__)

ROLE: Final = "sweeper"
LOST_GRACE_MS: Final = 60_000
"""Beyond all its timeouts, before a job that had started counts as lost for good."""
ORPHAN_AFTER_MS: Final = 90_000
"""Age of a `queued` event at which its job has to be in the queue. A call with an idempotency key that is repeated
within a minute still makes good what is missing."""
REMOVED_EVERY: Final = 5
"""At every so many sweeps the queue is searched for servers that the catalog does not have."""
WATCHED_LIMIT: Final = 10_000
"""Overdue or running jobs of one server that are remembered; more are looked at when some of these have ended."""
ORPHANS_A_SWEEP: Final = 4_096
ORPHAN_BATCH: Final = 256


class Waits(Protocol):
    """How long jobs of a server may wait: a `ServerSpec` says it, or `ChatWaits`."""

    @property
    def shortest_queue_s(self) -> float: ...

    def queue_s(self, tool: str) -> float: ...


@dataclass(frozen=True)
class _Queued:
    """A job in the queue, as far as its end is concerned."""

    seq: int
    id: str
    facts: JobFacts
    created_ms: int
    start_by_ms: int
    timeout_ms: int

    @property
    def session(self) -> str:
        return self.facts.session


@dataclass
class _Queue:
    """One server's queue from its head to the first job that is too young to be overdue."""

    seen: int = 0
    due_ms: dict[int, int] = field(default_factory=dict)
    """When to look at a job again, by its number in the stream."""
    jobs: dict[int, _Queued] = field(default_factory=dict)

    def watch(self, job: _Queued, due_ms: int) -> None:
        self.jobs[job.seq] = job
        self.due_ms[job.seq] = due_ms

    def forget(self, seq: int) -> None:
        self.jobs.pop(seq, None)
        self.due_ms.pop(seq, None)


class Sweeper:
    """`run()` must run in every gateway."""

    def __init__(self, store: Store, catalog: CatalogView, period_s: float) -> None:
        self._store = store
        self._catalog = catalog
        self._period_s = period_s
        self._holder = subjects.new_gateway_id()
        self._sweeps = 0
        self._queues: dict[str, _Queue] = {}
        self._orphans_after = 0

    async def run(self) -> None:
        """Sweep on a period while this gateway has the role. Runs until cancelled."""
        while True:
            await asyncio.sleep(self._period_s)
            try:
                bus = self._store.bus
                if await Role(bus, ROLE, self._holder).hold():
                    await self.sweep(bus)
                else:
                    self._forget()
            except StoreUnavailable as exc:
                _log.info("sweeper waits for the store", reason=exc.message)

    def _forget(self) -> None:
        """Another gateway sweeps: what this one knows gets old."""
        self._queues.clear()
        self._orphans_after = 0

    async def sweep(self, bus: Bus) -> None:
        """Look at everything once.

        Raises:
            StoreUnavailable: if the store went away meanwhile; the next sweep goes on.
        """
        for server in self._catalog.names():
            await self._sweep_server(bus, server, self._catalog.server(server))
        await self._sweep_server(bus, CHAT, ChatWaits())
        if self._sweeps % REMOVED_EVERY == 0:
            for server in await bus.servers_in_queue():
                if server not in (CHAT, *self._catalog.servers.entries) and await _removed(bus, server):
                    await self._sweep_removed(bus, server)
        self._sweeps += 1
        await self._sweep_orphans(bus)

    # --- queues ---------------------------------------------------------------------------------------

    async def _sweep_server(self, bus: Bus, server: str, waits: Waits) -> None:
        queue = self._queues.setdefault(server, _Queue())
        young_ms = now_ms() - int(waits.shortest_queue_s * 1000)
        async with aclosing(bus.jobs_in_queue(subjects.jobs_of_server(server), queue.seen)) as messages:
            async for msg in messages:
                job = _read(msg)
                if isinstance(job, UndecodableMessage):
                    queue.seen = msg.seq or 0  # a worker dead-letters it
                    continue
                if len(queue.jobs) >= WATCHED_LIMIT or job.created_ms > young_ms:
                    break
                queue.seen = job.seq
                queue.watch(job, job.start_by_ms)
        now = now_ms()
        for seq in [seq for seq, due_ms in queue.due_ms.items() if due_ms <= now]:
            job = queue.jobs[seq]
            again_ms = await self._look(bus, job, int(waits.queue_s(job.facts.tool) * 1000))
            if again_ms is None:
                queue.forget(seq)
            else:
                queue.watch(job, again_ms)

    async def _look(self, bus: Bus, job: _Queued, queue_ms: int) -> int | None:
        """End a job if its time is over. Returns when to look again; None if there is nothing more to look for."""
        newest = await bus.last_event(job.session, job.id)
        state = _state(newest)
        if state is State.ENDED:
            await bus.delete_job(job.seq)  # its acknowledgement was lost, or it was ended here
            return None
        deadline_ms = job.start_by_ms
        if newest is not None and state is State.RETRYING:
            deadline_ms = newest.event.time_ms + queue_ms
        elif newest is not None and state is State.RUNNING:
            deadline_ms = newest.event.time_ms + job.timeout_ms + queue_ms + LOST_GRACE_MS
        now = now_ms()
        if now < deadline_ms:
            return deadline_ms
        if newest is not None and state is State.RUNNING:
            await self._end(bus, job, newest, await _lost(bus, newest.event), Signal.LOSE)
        else:
            await self._end(bus, job, newest, QueueTimeout(now - job.created_ms), Signal.EXPIRE)
        return now  # looked at once more, to take its message out of the queue

    async def _end(self, bus: Bus, job: _Queued, newest: StoredEvent | None, error: JobError, signal: Signal) -> None:
        step(_state(newest), signal)
        try:
            await end_job(bus, job.facts, newest, Ending.of(error))
        except Fenced:
            return  # somebody took care of it just now
        metrics.JOBS_SWEPT.labels(error.outcome).inc()

    # --- servers that were removed ----------------------------------------------------------------------

    async def _sweep_removed(self, bus: Bus, server: str) -> None:
        """Dead-letter what waits. What runs on a worker that still drains is given its time."""
        self._queues.pop(server, None)
        async with aclosing(bus.jobs_in_queue(subjects.jobs_of_server(server))) as messages:
            async for msg in messages:
                job = _read(msg)
                if isinstance(job, UndecodableMessage):
                    await bus.bury(msg, job.as_dict())
                    await bus.delete_job(msg.seq or 0)
                    continue
                state = _state(await bus.last_event(job.session, job.id))
                if state is State.RUNNING:
                    await self._look(bus, job, queue_ms=0)
                else:
                    await self._bury(bus, server, job, msg, state)

    async def _bury(self, bus: Bus, server: str, job: _Queued, msg: RawStreamMsg, state: State) -> None:
        if state is not State.ENDED:
            step(state, Signal.GIVE_UP)
            error = ServerRemoved(server)
            try:
                await bus.bury(msg, error.as_dict())
            except Fenced:
                return  # a worker that still drains has it after all
            metrics.JOBS_SWEPT.labels(error.outcome).inc()
        await bus.delete_job(job.seq)

    # --- events without a job -----------------------------------------------------------------------------

    async def _sweep_orphans(self, bus: Bus) -> None:
        """Each `queued` event is looked at once, when it has a certain age."""
        old_ms = now_ms() - ORPHAN_AFTER_MS
        batch: list[StoredEvent] = []
        looked_at = 0
        async with aclosing(bus.queued_events(self._orphans_after)) as events:
            async for stored in events:
                if stored.event.time_ms > old_ms or looked_at >= ORPHANS_A_SWEEP:
                    break
                looked_at += 1
                batch.append(stored)
                if len(batch) == ORPHAN_BATCH:
                    await self._end_orphans(bus, batch)
                    batch = []
        await self._end_orphans(bus, batch)

    async def _end_orphans(self, bus: Bus, batch: list[StoredEvent]) -> None:
        if not batch:
            return
        begun = await bus.jobs_with_events([(stored.event.session, stored.event.job) for stored in batch])
        waiting = [stored for stored in batch if (stored.event.session, stored.event.job) not in begun]
        in_queue: dict[tuple[str, str], set[str]] = {}
        for stored in waiting:
            event = stored.event
            place = (str(event.data.get("server")), event.session)
            if place not in in_queue:
                messages = bus.jobs_in_queue(subjects.jobs(*place))
                in_queue[place] = {job_of(msg) async for msg in messages}
            if event.job not in in_queue[place]:
                await self._end_orphan(bus, event)
        self._orphans_after = batch[-1].seq

    async def _end_orphan(self, bus: Bus, queued: Event) -> None:
        # Looked at last, so that a job which ended and left the queue in between is not taken for an orphan.
        newest = await bus.last_event(queued.session, queued.job)
        if newest is None or newest.event.type != "queued":
            return
        error = NotAccepted()
        try:
            await end_job(bus, await facts_of_queued(bus, queued), newest, Ending.of(error))
        except Fenced:
            return
        metrics.JOBS_SWEPT.labels(error.outcome).inc()


async def _removed(bus: Bus, server: str) -> bool:
    """As the store has it: this gateway's own view of the catalog may be behind."""
    return (await bus.get(SERVERS_BUCKET, server)).value is None


def _state(newest: StoredEvent | None) -> State:
    return state_after(newest.event.type if newest else None)


def _read(msg: RawStreamMsg) -> _Queued | UndecodableMessage:
    try:
        job = read_job(msg.subject or "", msg.data or b"")
    except UndecodableMessage as exc:
        return exc
    return _Queued(
        seq=msg.seq or 0,
        id=job.id,
        facts=JobFacts.of(job, (msg.headers or {}).get(headers.TRACEPARENT)),
        created_ms=job.created_ms,
        start_by_ms=job.start_by_ms,
        timeout_ms=job.timeout_ms,
    )


async def _lost(bus: Bus, newest: Event) -> OutcomeUnknown:
    started = await bus.started_event(newest.session, newest.job, newest.attempt) or newest
    worker = str(started.data.get("worker", "unknown"))
    return OutcomeUnknown(newest.attempt, worker, started.time_ms, "no worker took the job over in its time")
