"""How much work is let in: calls of a tenant by their rate, jobs of a session by their number.

The third bound, jobs of a session on one server, is the store's own (`common.streams`, QUEUE_LIMIT).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from common.chat_errors import TurnInProgress
from common.errors import QueueFull, RateLimited, TooManyJobs
from gateway.settings import GatewaySettings
from gateway.store import Store

COUNT_TRUSTED_S: Final = 1.0
"""How long jobs that other gateways accept for a session may be unknown here. A busy session costs one count a
second instead of one a call."""
SETTLED_WITHIN_S: Final = 5.0
"""How long a count waits for calls that are just being accepted, at the limit."""
TOO_MANY_RETRY_S: Final = 1.0
MAX_KNOWN: Final = 10_000
"""Sessions whose counts are remembered."""
_NOISE_S: Final = 1e-6
"""What the arithmetic of a clock may be off: no call is refused for that."""

Clock = Callable[[], float]


class Admission:
    """Both bounds of one gateway."""

    def __init__(self, store: Store, settings: GatewaySettings) -> None:
        self._rate = RateLimit(settings.tenant_rate, settings.tenant_burst) if settings.tenant_rate else None
        self._in_flight = InFlight(store, settings.max_jobs_in_flight)

    def count_call(self, tenant: str) -> None:
        """
        Raises:
            RateLimited: if the tenant calls faster than it may.
        """
        if self._rate is not None:
            self._rate.count_call(tenant)

    @asynccontextmanager
    async def place(self, session: str) -> AsyncIterator[None]:
        """A place for a job that is stored inside of this context.

        Raises:
            TooManyJobs: if the session has none left.
            StoreUnavailable: if the store cannot tell.
        """
        async with self._in_flight.place(session):
            yield


class RateLimit:
    """So many calls at once, and then so many a second, for each tenant: GCRA, which is one number a tenant.

    The number is the moment when all calls up to now would have come if they had kept to the rate.
    """

    def __init__(self, rate_per_s: float, burst: int, clock: Clock = time.monotonic) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._clock = clock
        self._due: dict[str, float] = {}
        """By tenant: API_KEYS bounds them."""

    def count_call(self, tenant: str) -> None:
        """
        Raises:
            RateLimited: if that is one call too many; it does not count then.
        """
        now = self._clock()
        due = max(self._due.get(tenant, now), now)
        early_s = due - now - (self._burst - 1) / self._rate_per_s
        if early_s > _NOISE_S:
            depth = min(self._burst, math.ceil((due - now - _NOISE_S) * self._rate_per_s))
            raise RateLimited(self._rate_per_s, self._burst, depth, math.ceil(early_s * 1000) / 1000)
        self._due[tenant] = due + 1 / self._rate_per_s


class InFlight:
    """Jobs of a session that wait or run, on all servers.

    The store knows the truth over all gateways. It is asked when a session's last count is too old, and when that and
    what was accepted here since reach the limit. So it is exact for what comes through this gateway, and
    may be `COUNT_TRUSTED_S` behind for what comes through others.
    """

    def __init__(self, store: Store, limit: int, clock: Clock = time.monotonic) -> None:
        self._store = store
        self._limit = limit
        self._clock = clock
        self._sessions: dict[str, _Session] = {}
        """The one that was used last stands last."""

    @asynccontextmanager
    async def place(self, session: str) -> AsyncIterator[None]:
        """As `Admission.place()`."""
        known = self._known(session)
        known.users += 1
        try:
            await self._take_place(session, known)
            try:
                yield
            except (QueueFull, TurnInProgress):
                known.since -= 1  # nothing was kept; after any other error something may have been
                raise
            finally:
                known.settle_one()
        finally:
            known.users -= 1

    async def _take_place(self, session: str, known: _Session) -> None:
        """Take it before anything is awaited, so that no two calls get the same."""
        arrived = self._clock()
        if arrived - known.counted_at > COUNT_TRUSTED_S or known.jobs >= self._limit:
            async with known.counting:
                # One count serves all that waited for it.
                if known.counted_at < arrived:
                    await self._count(session, known)
                if known.jobs >= self._limit:
                    raise TooManyJobs(self._limit, known.jobs, TOO_MANY_RETRY_S)
        known.since += 1
        known.under_way += 1
        known.settled.clear()

    async def _count(self, session: str, known: _Session) -> None:
        """Ask the store. Jobs that are just being accepted may be in its answer or not, so they count in any case;
        where that decides, they are waited for."""
        for _ in range(2):
            asked = self._clock()
            unsure = known.since = known.under_way
            known.counted_at = -math.inf  # nobody takes a place by the old count, also if there will be no new one
            known.counted = await self._store.bus.count_jobs(session)
            known.counted_at = asked
            if not unsure or known.jobs < self._limit or known.counted >= self._limit:
                return
            try:
                async with asyncio.timeout(SETTLED_WITHIN_S):
                    await known.settled.wait()
            except TimeoutError:
                return

    def _known(self, session: str) -> _Session:
        known = self._sessions.pop(session, None)
        if known is None:
            known = _Session()
            if len(self._sessions) >= MAX_KNOWN:
                self._forget_one()
        self._sessions[session] = known
        return known

    def _forget_one(self) -> None:
        """The one that was not used for longest. One in use stays: another count of it would not know its calls."""
        for session, known in self._sessions.items():
            if not known.users:
                del self._sessions[session]
                return


class _Session:
    """What is known of the jobs of one session."""

    def __init__(self) -> None:
        self.counted = 0
        """As the store had them."""
        self.counted_at = -math.inf
        """When it was asked."""
        self.since = 0
        """Taken places that may not be among `counted`."""
        self.under_way = 0
        """Those of them whose job the store has not confirmed or refused yet."""
        self.users = 0
        """Calls that hold this object."""
        self.counting = asyncio.Lock()
        self.settled = asyncio.Event()
        """Set while nothing is under way."""

    @property
    def jobs(self) -> int:
        """At most so many."""
        return self.counted + self.since

    def settle_one(self) -> None:
        self.under_way -= 1
        if not self.under_way:
            self.settled.set()
