"""What is let in: the rate of a tenant on a clock that the test turns, and the jobs of a session on a real store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import cast

import pytest

from common.bus import Bus
from common.errors import QueueFull, RateLimited, StoreUnavailable, TooManyJobs
from gateway import admission
from gateway.admission import InFlight, RateLimit
from gateway.store import Store
from tests.nats_server import NatsServer
from tests.unit.common.bus_rig import DEADLINE_S, SERVER, SESSION, make_job, open_bus


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


# --- the rate of a tenant -------------------------------------------------------------------------------------


def passed(limit: RateLimit, count: int, tenant: str = "acme") -> int:
    """How many of so many calls pass."""
    passed = 0
    for _ in range(count):
        try:
            limit.count_call(tenant)
        except RateLimited:
            continue
        passed += 1
    return passed


def refusal(limit: RateLimit, tenant: str = "acme") -> RateLimited:
    with pytest.raises(RateLimited) as refused:
        limit.count_call(tenant)
    return refused.value


def test_a_burst_passes_and_then_the_rate() -> None:
    """After a burst of 5, ten a second, however they are spread over the second."""
    clock = Clock()
    limit = RateLimit(10, 5, clock)
    assert passed(limit, 8) == 5
    for step_s, count in ((0.1, 1), (0.2, 2), (0.05, 0), (0.05, 1), (0.35, 3), (0.05, 1)):
        clock.now += step_s
        assert passed(limit, 5) == count


def test_a_pause_gives_the_burst_back_and_no_more() -> None:
    """However long it was."""
    clock = Clock()
    limit = RateLimit(10, 5, clock)
    assert passed(limit, 5) == 5
    clock.now += 3_600

    assert passed(limit, 100) == 5


def test_over_a_long_time_exactly_the_rate_passes() -> None:
    """No call is lost or won by the arithmetic of the clock: 7 a second for a minute, asked for every millisecond."""
    clock = Clock()
    limit = RateLimit(7, 3, clock)
    assert passed(limit, 3) == 3
    count = 0
    for _ in range(60_000):
        clock.now += 0.001
        count += passed(limit, 1)

    assert count in (419, 420)


def test_who_comes_back_when_told_to_passes_and_no_sooner() -> None:
    """Refused calls do not put the moment off."""
    clock = Clock()
    limit = RateLimit(3, 2, clock)
    passed(limit, 2)
    for _ in range(20):
        clock.now += 0.07
        if passed(limit, 1):
            continue
        first, again = refusal(limit), refusal(limit)
        assert first.data == again.data
        clock.now += first.data["retry_after_s"] - 0.002
        refusal(limit)
        clock.now += 0.002
        assert passed(limit, 2) == 1


def test_a_refusal_tells_burst_fill_rate_and_when() -> None:
    """The bucket is full, or nearly."""
    clock = Clock()
    limit = RateLimit(10, 4, clock)
    passed(limit, 4)
    assert refusal(limit).data == {"limit": 4, "depth": 4, "rate_per_s": 10, "retry_after_s": 0.1}
    clock.now += 0.06

    assert refusal(limit).data == {"limit": 4, "depth": 4, "rate_per_s": 10, "retry_after_s": 0.04}


def test_the_smallest_rate_with_a_burst_of_one_can_be_waited_for() -> None:
    """One call in 100 seconds."""
    clock = Clock()
    limit = RateLimit(0.01, 1, clock)
    assert passed(limit, 2) == 1
    assert refusal(limit).data["retry_after_s"] == 100
    clock.now += 100

    assert passed(limit, 2) == 1


def test_tenants_do_not_share_a_rate() -> None:
    """One that is too fast holds nobody else back."""
    limit = RateLimit(1, 2, Clock())

    assert [passed(limit, 5, tenant) for tenant in ("acme", "umbra")] == [2, 2]


# --- the jobs of a session ------------------------------------------------------------------------------------


class CountingStore:
    """The way to a real bus, with the number of counts that were asked for."""

    def __init__(self, bus: Bus) -> None:
        self.counts = 0
        self.connected = True
        self._bus = bus
        self._real = bus.count_jobs

    @property
    def bus(self) -> Bus:
        if not self.connected:
            raise StoreUnavailable("away")
        return cast(Bus, SimpleNamespace(count_jobs=self._count))

    async def _count(self, session: str) -> int:
        self.counts += 1
        return await self._real(session)


@pytest.fixture
async def bus(nats_server: NatsServer) -> AsyncIterator[Bus]:
    async with open_bus(nats_server) as bus:
        await bus.ensure_server(SERVER, 1000)
        yield bus


@pytest.fixture
def store(bus: Bus) -> CountingStore:
    return CountingStore(bus)


def in_flight(store: CountingStore, limit: int, clock: Callable[[], float] | None = None) -> InFlight:
    return InFlight(cast(Store, store), limit, clock or Clock())


async def accept(limit: InFlight, bus: Bus, session: str = SESSION) -> bool:
    """Whether a call was let in."""
    try:
        async with limit.place(session):
            await bus.enqueue_job(make_job(session=session))
    except TooManyJobs:
        return False
    return True


async def end_jobs(bus: Bus, count: int) -> None:
    """The session's oldest jobs leave the queue."""
    for _ in range(count):
        oldest = await bus.oldest_job_seq(SERVER, SESSION)
        assert oldest is not None
        await bus.delete_job(oldest)


async def test_the_job_beyond_the_limit_is_refused_and_the_last_one_is_not(bus: Bus, store: CountingStore) -> None:
    """One count tells what there is, and one more at the limit."""
    limit = in_flight(store, 3)
    await bus.enqueue_job(make_job(server="other"))
    assert [await accept(limit, bus) for _ in range(2)] == [True, True]
    assert store.counts == 1
    with pytest.raises(TooManyJobs) as refused:
        async with limit.place(SESSION):
            pass

    assert refused.value.data == {"limit": 3, "depth": 3, "retry_after_s": 1.0}
    assert await accept(limit, bus, "s2")


@pytest.mark.parametrize("there", [0, 30, 99, 100])
async def test_of_many_calls_at_once_exactly_so_many_pass_as_there_are_places(
    bus: Bus, store: CountingStore, there: int
) -> None:
    """Whatever was there before."""
    limit = in_flight(store, 100)
    for number in range(there):
        await bus.enqueue_job(make_job(server=f"s{number % 2}"))
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        calls = [tasks.create_task(accept(limit, bus)) for _ in range(150)]

    assert sum(call.result() for call in calls) == 100 - there
    assert await bus.count_jobs(SESSION) == 100


async def test_many_calls_at_the_limit_share_their_counts(bus: Bus, store: CountingStore) -> None:
    """A client that does not wait costs the store no count for each of its calls."""
    limit = in_flight(store, 1, time.monotonic)
    assert await accept(limit, bus)
    store.counts = 0
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        calls = [tasks.create_task(accept(limit, bus)) for _ in range(200)]

    assert not any(call.result() for call in calls)
    assert store.counts <= 2


async def test_places_of_jobs_that_have_ended_are_found_at_the_limit(bus: Bus, store: CountingStore) -> None:
    """Nothing tells the gateway of an end, so it asks when it matters."""
    clock = Clock()
    limit = in_flight(store, 5, clock)
    for _ in range(5):
        clock.now += 0.001
        assert await accept(limit, bus)
    await end_jobs(bus, 2)
    found = []
    for _ in range(3):
        clock.now += 0.001
        found.append(await accept(limit, bus))

    assert found == [True, True, False]


async def test_what_others_accept_is_known_after_a_second_at_the_latest(bus: Bus, store: CountingStore) -> None:
    """The count is trusted for that long and no longer."""
    clock = Clock()
    limit = in_flight(store, 3, clock)
    assert await accept(limit, bus)
    for _ in range(2):
        await bus.enqueue_job(make_job())
    clock.now += admission.COUNT_TRUSTED_S + 0.001

    assert not await accept(limit, bus)


async def test_a_busy_session_is_counted_once_a_second(bus: Bus, store: CountingStore) -> None:
    """And not for each of its calls."""
    clock = Clock()
    limit = in_flight(store, 1_000, clock)
    for _ in range(50):
        clock.now += 0.05
        await accept(limit, bus)

    assert store.counts <= 3


async def test_a_job_that_is_being_accepted_while_the_store_counts_is_counted_once(
    bus: Bus, store: CountingStore
) -> None:
    """It is in the store's answer and in the gateway's memory: its place is taken once all the same."""
    clock = Clock()
    limit = in_flight(store, 3, clock)
    stored, finish = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        async with limit.place(SESSION):
            await bus.enqueue_job(make_job())
            stored.set()
            await finish.wait()

    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        for _ in range(2):
            stored.clear()
            tasks.create_task(slow())
            await stored.wait()
        clock.now += admission.COUNT_TRUSTED_S + 0.001
        third = tasks.create_task(accept(limit, bus))
        while store.counts < 2:
            await asyncio.sleep(0)
        finish.set()
        assert await third

    clock.now += 0.001
    assert not await accept(limit, bus)


async def test_a_call_that_the_queue_refuses_takes_no_place(bus: Bus, store: CountingStore) -> None:
    """Nothing of it was kept."""
    limit = in_flight(store, 2)
    for _ in range(5):
        with pytest.raises(QueueFull):
            async with limit.place(SESSION):
                raise QueueFull(SERVER, 1, 1.0)

    assert [await accept(limit, bus) for _ in range(2)] == [True, True]


@pytest.mark.parametrize("fault", [StoreUnavailable("no answer"), asyncio.CancelledError()], ids=["silence", "cancel"])
async def test_a_call_of_unknown_fate_keeps_its_place_until_the_next_count(
    bus: Bus, store: CountingStore, fault: BaseException
) -> None:
    """It may have been stored. At the limit the store tells that it was not."""
    clock = Clock()
    limit = in_flight(store, 2, clock)
    with pytest.raises(type(fault)):
        async with limit.place(SESSION):
            raise fault
    assert await accept(limit, bus)
    assert store.counts == 1
    clock.now += 0.001

    assert await accept(limit, bus)
    assert store.counts == 2


async def test_without_an_answer_of_the_store_nothing_is_let_in(bus: Bus, store: CountingStore) -> None:
    """Not by an old count either; afterwards it goes on."""
    clock = Clock()
    limit = in_flight(store, 3, clock)
    assert await accept(limit, bus)
    clock.now += admission.COUNT_TRUSTED_S + 0.001
    store.connected = False
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await accept(limit, bus)
    store.connected = True

    assert await accept(limit, bus)


async def test_sessions_are_remembered_up_to_a_bound_and_those_in_use_are_kept(
    bus: Bus, store: CountingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that was used least recently goes; forgetting one that accepts just now would lose its places."""
    monkeypatch.setattr(admission, "MAX_KNOWN", 3)
    monkeypatch.setattr(admission, "SETTLED_WITHIN_S", 0.01)
    limit = in_flight(store, 1)
    async with limit.place("held"):
        for number in range(10):
            async with limit.place(f"other-{number}"):
                pass
        assert len(limit._sessions) == 3
        with pytest.raises(TooManyJobs):
            async with limit.place("held"):
                pass
