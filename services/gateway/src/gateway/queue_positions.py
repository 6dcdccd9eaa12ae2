"""Positions: a job that waits for a worker is told how many jobs are ahead of it, as stored `progress` events.

The gateway that accepted a job tells; where that gateway ends, its jobs go on and nobody tells any more. What is told
is the store's own count, to within what comes into the queue in the moment of counting.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from common.bus import Bus
from common.errors import Fenced, ServiceError, StoreUnavailable
from common.log import get
from common.schema import Job, now_ms
from gateway.store import Store

_log = get(__name__)

FIRST_AFTER_S: Final = 1.0
"""A job that waits no longer than this hears nothing."""
PERIOD_MAX_S: Final = 15.0
"""A job's reports come after 1, 2, 4, 8 and then every so many seconds: a long queue moves slowly for each."""
ROUND_PERIOD_S: Final = 0.5
"""How often the jobs that are due are looked at, while there are any that may wait."""
MAX_WAITING: Final = 10_000
"""Jobs that are remembered. Beyond it new ones are not told, and run all the same."""
REPORTS_PER_ROUND: Final = 64
"""Of one server: the oldest of those that are due."""
BYTES_PER_ROUND: Final = 4 * 1024 * 1024
"""Of one server: what is read of the queue for it, as each job's message comes with the answer."""


@dataclass(order=True)
class _Waiting:
    """A job that may be waiting. Ordered by when it is looked at next."""

    due: float
    job_seq: int
    job: str = field(compare=False)
    session: str = field(compare=False)
    server: str = field(compare=False)
    start_by_ms: int = field(compare=False)
    size: int = field(compare=False)
    period_s: float = field(compare=False)
    ahead_at_first: int | None = field(default=None, compare=False)
    """None before the first report."""
    ahead: int = field(default=0, compare=False)
    """As the last report told it."""
    last_seq: int = field(default=0, compare=False)
    """Number of the last report."""


class QueuePositions:
    """The jobs that this gateway has accepted and that may be waiting. `run()` tells of them."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._due: list[_Waiting] = []
        """A heap."""
        self._jobs: set[str] = set()
        """Those of `_due`, and of the round that is under way."""
        self._some = asyncio.Event()

    def add(self, job: Job, job_seq: int, size: int) -> None:
        """A job was accepted under that number in the queue, with a message of that size."""
        if len(self._jobs) >= MAX_WAITING or job.id in self._jobs:
            return
        self._jobs.add(job.id)
        waiting = _Waiting(
            due=self._clock() + FIRST_AFTER_S,
            job_seq=job_seq,
            job=job.id,
            session=job.session,
            server=job.server,
            start_by_ms=job.start_by_ms,
            size=size,
            period_s=FIRST_AFTER_S,
        )
        heapq.heappush(self._due, waiting)
        self._some.set()

    async def run(self) -> None:
        """Tell until cancelled. Asks the store for nothing while no job is remembered."""
        while True:
            await self._some.wait()
            await asyncio.sleep(ROUND_PERIOD_S)
            for server, jobs in self._take_due().items():
                await self._round(server, jobs)
            if not self._due:
                self._some.clear()

    def _take_due(self) -> dict[str, list[_Waiting]]:
        """By server, oldest first."""
        now = self._clock()
        taken: dict[str, list[_Waiting]] = {}
        while self._due and self._due[0].due <= now:
            waiting = heapq.heappop(self._due)
            taken.setdefault(waiting.server, []).append(waiting)
        for jobs in taken.values():
            jobs.sort(key=lambda waiting: waiting.job_seq)
        return taken

    async def _round(self, server: str, jobs: list[_Waiting]) -> None:
        """One look at a server's queue. Jobs that still wait are looked at again, the later the longer they wait."""
        try:
            bus = self._store.bus
            front = await bus.queue_front(server)
        except StoreUnavailable as exc:
            _log.info("positions wait for the store", server=server, reason=exc.message)
            self._keep(jobs)
            return
        if front is None:
            self._jobs.difference_update(job.job for job in jobs)
            return
        now = now_ms()
        # Whether one waits is told by the queue itself: the number of those that do may be too low.
        still = [job for job in jobs if job.job_seq > front.delivered and job.start_by_ms > now]
        reported = _affordable(still)
        async with asyncio.TaskGroup() as tasks:
            looks = [tasks.create_task(_report(bus, job, front.waiting)) for job in still[:reported]]
        waits = [job for job, look in zip(still[:reported], looks, strict=True) if look.result()] + still[reported:]
        self._jobs.difference_update({job.job for job in jobs} - {job.job for job in waits})
        self._keep(waits)

    def _keep(self, jobs: list[_Waiting]) -> None:
        now = self._clock()
        for job in jobs:
            job.period_s = min(PERIOD_MAX_S, job.period_s * 2)
            job.due = now + job.period_s
            heapq.heappush(self._due, job)


def _affordable(jobs: list[_Waiting]) -> int:
    """How many of them fit in one round; at least one."""
    count, size = 0, 0
    for job in jobs[:REPORTS_PER_ROUND]:
        size += job.size
        if count and size > BYTES_PER_ROUND:
            break
        count += 1
    return count


async def _report(bus: Bus, job: _Waiting, waiting: int) -> bool:
    """Tell the job's position if it has changed. False if the job is not in the queue any more."""
    try:
        behind = await bus.jobs_behind(job.server, job.job, job.job_seq)
        if behind is None:
            return False
        ahead = max(0, waiting - behind - 1)
        if job.ahead_at_first is None or ahead < job.ahead:
            await _store(bus, job, ahead)
    except ServiceError as exc:
        _log.info("position not told", session=job.session, job=job.job, reason=exc.message)
    return True


async def _store(bus: Bus, job: _Waiting, ahead: int) -> None:
    ahead_at_first = ahead if job.ahead_at_first is None else job.ahead_at_first
    data = {
        "progress": ahead_at_first - ahead,
        "total": ahead_at_first,
        "message": _message(job.server, ahead),
        "position": ahead,
    }
    try:
        job.last_seq = await bus.publish_position(job.session, job.job, data, job.last_seq)
    except Fenced:
        # Its answer was lost, or another gateway was asked for the same job: go on from what is stored.
        await _adopt(bus, job)
        return
    job.ahead_at_first, job.ahead = ahead_at_first, ahead


async def _adopt(bus: Bus, job: _Waiting) -> None:
    stored = await bus.last_position(job.session, job.job)
    if stored is None:
        job.last_seq = 0  # past the resume window
        return
    told: dict[str, Any] = stored.event.data
    job.last_seq, job.ahead_at_first, job.ahead = stored.seq, int(told["total"]), int(told["position"])


def _message(server: str, ahead: int) -> str:
    if ahead == 0:
        return f"next in the queue of {server}"
    return f"{ahead} {'job' if ahead == 1 else 'jobs'} ahead in the queue of {server}"
