"""A session's hold on one container, and the order of its calls.

A lease is a key in the `leases` bucket with a TTL that its worker renews. Whichever worker pulls a job of the
session hands it to the holder; a holder that is gone is succeeded, with a fresh container and `state_lost`. The
jobs of a lease run one at a time, in the order in which they were accepted (docs/adr/0006).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from time import monotonic

from common import headers, metrics, subjects
from common.bus import Bus
from common.consumer import Delivery
from common.errors import Fenced, StoreUnavailable, UndecodableMessage
from common.log import get
from common.schema import LeaseRecord
from common.streams import LEASES_BUCKET
from worker.container import ToolContainer
from worker.errors import ServerGone
from worker.heartbeat import Heartbeat
from worker.pool import Acquired, Pool

_log = get(__name__)

HANDOFF_TIMEOUT_S = 2.0
TAKEN = b"taken"
NOT_HELD = b"not held"
CLAIM_TRIES = 5
CLAIM_RETRY_S = 0.05
PARKED_LIMIT = 32
"""Jobs that may wait at one lease; more go back to the queue for a while."""
HAND_BACK_DELAY_S = 1.0
ORDER_RECHECK_S = 0.25
"""An older job of the session that another worker still has is looked for again after this long."""


class Lease:
    """One session's container of one server. The ContainerSource of its jobs."""

    def __init__(self, session: str, revision: int, state_lost: bool, pool: Pool, acquire_timeout_s: float) -> None:
        self.session = session
        self.revision = revision
        self.container: ToolContainer | None = None
        self.quiet = asyncio.Event()
        """Set while no job runs."""
        self.quiet.set()
        self._state_lost = state_lost
        self._pool = pool
        self._acquire_timeout_s = acquire_timeout_s
        self._parked: dict[int, Delivery] = {}
        """By stream number, which is the order of acceptance."""
        self._arrival = asyncio.Event()
        self._finished_seq = 0
        self._used_at = monotonic()

    @property
    def idle_s(self) -> float:
        return 0.0 if self._parked or not self.quiet.is_set() else monotonic() - self._used_at

    # --- order ----------------------------------------------------------------------------------------

    def park(self, delivery: Delivery) -> bool:
        """Put a job in line. False if the line is full. A repeated delivery replaces the earlier one."""
        if len(self._parked) >= PARKED_LIMIT and delivery.stream_seq not in self._parked:
            return False
        self._parked[delivery.stream_seq] = delivery
        self._arrival.set()
        return True

    def unpark_all(self) -> list[Delivery]:
        parked = [self._parked[seq] for seq in sorted(self._parked)]
        self._parked.clear()
        return parked

    async def next_job(self, bus: Bus) -> Delivery:
        """The session's oldest job on this server, once it is here.

        The queue itself tells: an older message that is not parked here is on its way from another worker.
        """
        while True:
            self._arrival.clear()
            if self._parked:
                first = min(self._parked)
                job = self._parked[first].job
                try:
                    oldest = await bus.oldest_job_seq(job.server, job.session, after=self._finished_seq)
                except StoreUnavailable:
                    oldest = 0
                # A drain may have emptied the line meanwhile.
                if (oldest is None or oldest >= first) and first in self._parked:
                    return self._parked.pop(min(self._parked))
            try:
                async with asyncio.timeout(ORDER_RECHECK_S if self._parked else None):
                    await self._arrival.wait()
            except TimeoutError:
                continue

    @contextmanager
    def running(self, delivery: Delivery) -> Iterator[None]:
        """Around the run of one of its jobs."""
        self.quiet.clear()
        try:
            yield
        finally:
            self._finished_seq = max(self._finished_seq, delivery.stream_seq)
            self._used_at = monotonic()
            self.quiet.set()

    # --- ContainerSource ------------------------------------------------------------------------------

    async def acquire(self) -> Acquired:
        if self.container is not None and self.container.usable:
            return Acquired(self.container, warm=True)
        await self._let_go()
        acquired = await self._pool.acquire(self._acquire_timeout_s)
        self.container = acquired.container
        lost, self._state_lost = self._state_lost, False
        return Acquired(acquired.container, acquired.warm, state_lost=lost)

    async def release(self, container: ToolContainer) -> None:
        """The container stays with the session, unless it has ended."""
        if not container.usable:
            await self._let_go()

    async def end(self, container: ToolContainer) -> None:
        self.container, self._state_lost = None, True
        await self._pool.end(container)

    async def post_mortem(self, container: ToolContainer, gone: ServerGone) -> ServerGone:
        return await self._pool.post_mortem(container, gone)

    async def _let_go(self) -> None:
        if self.container is not None:
            container, self.container, self._state_lost = self.container, None, True
            await self._pool.release(container)

    async def close(self) -> None:
        """Give the container up; the pool removes it."""
        await self._let_go()


class Leases:
    """The leases of one server on this worker. `keep()` must run; `work` is started for each lease."""

    def __init__(
        self,
        bus: Bus,
        worker: str,
        server: str,
        pool: Pool,
        heartbeat: Heartbeat,
        tasks: asyncio.TaskGroup,
        work: Callable[[Lease], Coroutine[None, None, None]],
        *,
        idle_s: float,
        acquire_timeout_s: float,
    ) -> None:
        self._bus = bus
        self._worker = worker
        self._server = server
        self._pool = pool
        self._heartbeat = heartbeat
        self._tasks = tasks
        self._work = work
        self._idle_s = idle_s
        self._acquire_timeout_s = acquire_timeout_s
        self._ttl_s = bus.limits.lease_ttl_s
        self._held: dict[str, tuple[Lease, asyncio.Task[None]]] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._held)

    # --- bringing a job to its lease ------------------------------------------------------------------

    async def place(self, delivery: Delivery) -> None:
        """Park a job at its session's lease, here or at the worker that holds it; or hand it back."""
        try:
            for _ in range(CLAIM_TRIES):
                if self.receive(delivery) or await self._place_elsewhere(delivery):
                    return
                await asyncio.sleep(CLAIM_RETRY_S)
        except StoreUnavailable as exc:
            _log.warning("lease cannot be found out", session=delivery.job.session, why=exc.message)
        await delivery.hand_back(HAND_BACK_DELAY_S)

    def receive(self, delivery: Delivery) -> bool:
        """Park a job whose lease is held here. False if it is not, or its line is full."""
        held = self._held.get(delivery.job.session)
        if held is None or not held[0].park(delivery):
            return False
        self._heartbeat.hold(delivery)
        return True

    async def _place_elsewhere(self, delivery: Delivery) -> bool:
        """Hand the job to the holder, or become the holder. True if the job needs no more care from here."""
        session = delivery.job.session
        if session in self._held:
            return False  # held here, with a full line
        key = subjects.lease_key(session, self._server)
        entry = await self._bus.get(LEASES_BUCKET, key)
        holder = _holder(entry.value)
        if holder == self._worker:
            return False  # another job of the session is just claiming it here, or it is just being given up
        if holder is not None:
            answer = await self._hand_over(holder, delivery)
            if answer == TAKEN:
                return True
            if answer is not None:
                return False  # the holder is just giving it up
        value = LeaseRecord(worker=self._worker, container="").encode()
        try:
            revision = await self._bus.replace(LEASES_BUCKET, key, value, entry.revision, ttl_s=self._ttl_s)
        except Fenced:
            return False
        lease = Lease(session, revision, entry.revision > 0, self._pool, self._acquire_timeout_s)
        lease.park(delivery)
        self._heartbeat.hold(delivery)
        self._held[session] = lease, self._tasks.create_task(self._work(lease))
        metrics.LEASES_HELD.inc()
        return True

    async def _hand_over(self, holder: str, delivery: Delivery) -> bytes | None:
        """The holder's answer; None if the holder is gone."""
        message_headers = {
            headers.ACK_SUBJECT: delivery.ack_subject,
            headers.DELIVERED: str(delivery.deliveries),
            headers.SEQUENCE: str(delivery.stream_seq),
        }
        if delivery.traceparent:
            message_headers[headers.TRACEPARENT] = delivery.traceparent
        return await self._bus.request(subjects.handoff(holder), delivery.payload, HANDOFF_TIMEOUT_S, message_headers)

    # --- keeping and ending ---------------------------------------------------------------------------

    async def keep(self) -> None:
        """Renew what is used, give up what is idle. Runs until cancelled."""
        period_s = min(self._ttl_s / 3, max(self._idle_s / 3, 0.1))
        while True:
            await asyncio.sleep(period_s)
            for lease, _ in list(self._held.values()):
                if lease.idle_s > self._idle_s:
                    self.give_up(lease.session)
                else:
                    await self._renew(lease)

    async def _renew(self, lease: Lease) -> None:
        container = lease.container.id if lease.container else ""
        value = LeaseRecord(worker=self._worker, container=container).encode()
        key = subjects.lease_key(lease.session, self._server)
        try:
            lease.revision = await self._bus.replace(LEASES_BUCKET, key, value, lease.revision, ttl_s=self._ttl_s)
        except StoreUnavailable as exc:
            _log.warning("lease not renewed", session=lease.session, server=self._server, why=exc.message)
        except Fenced:
            await self._lost_or_renewed(lease, key)

    async def _lost_or_renewed(self, lease: Lease, key: str) -> None:
        """The lease has another revision than the one that was known here: of a renewal that was stored although its
        acknowledgement was lost, or another worker's."""
        try:
            entry = await self._bus.get(LEASES_BUCKET, key)
        except StoreUnavailable:
            return  # the next renewal finds out
        held = self._held.get(lease.session)
        if held is None or held[0] is not lease:
            return  # given up while it was being renewed
        if _holder(entry.value) == self._worker:
            lease.revision = entry.revision
            return
        # Another worker has it now. What runs here runs to its end, and its events are fenced as ever.
        _log.warning("lease lost", session=lease.session, server=self._server)
        del self._held[lease.session]
        self._end_soon(*held, purge=False)

    def give_up(self, session: str) -> None:
        """End a session's lease, if it is held here, as soon as what runs has ended."""
        held = self._held.pop(session, None)
        if held is not None:
            self._end_soon(*held, purge=True)

    def _end_soon(self, lease: Lease, working: asyncio.Task[None], *, purge: bool) -> None:
        ending = self._tasks.create_task(self._end(lease, working, purge=purge))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def _end(self, lease: Lease, working: asyncio.Task[None], *, purge: bool) -> None:
        await lease.quiet.wait()
        working.cancel()
        await asyncio.wait({working})
        metrics.LEASES_HELD.dec()
        await self._hand_back(lease)
        await lease.close()
        if purge:
            key = subjects.lease_key(lease.session, self._server)
            try:
                await self._bus.purge(LEASES_BUCKET, key, self._bus.limits.lease_memory_s)
            except StoreUnavailable as exc:
                _log.warning("lease lapses by its TTL", session=lease.session, server=self._server, why=exc.message)

    async def _hand_back(self, lease: Lease) -> None:
        for delivery in lease.unpark_all():
            await self._heartbeat.hand_back(delivery)

    async def drain(self) -> None:
        """What has not started goes to another worker, and so does each session of which nothing runs here.

        Where something runs the lease is kept and renewed, so that the session's next job waits for it; it is for the
        caller to give it up then.
        """
        for lease, _ in list(self._held.values()):
            await self._hand_back(lease)
            if lease.quiet.is_set():
                self.give_up(lease.session)

    async def close(self) -> None:
        """End every lease. Returns when their containers are given up and their keys are gone."""
        # A group of its own: the server's may be failing, and start no task any more.
        async with asyncio.TaskGroup() as tasks:
            for held in self._held.values():
                tasks.create_task(self._end(*held, purge=True))
        self._held.clear()
        if self._ending:
            await asyncio.wait(set(self._ending))


def _holder(value: bytes | None) -> str | None:
    if value is None:
        return None
    try:
        return LeaseRecord.decode(value).worker
    except UndecodableMessage:
        return None  # unreadable is as good as gone: the claim is fenced by its revision anyway
