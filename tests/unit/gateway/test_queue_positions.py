"""What waiting jobs are told of their queue: on a real store, with the test as the worker that takes jobs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
from nats.aio.msg import Msg

from common.bus import Bus
from common.errors import StoreUnavailable
from common.job_queue import QueueFront
from common.schema import Event, Job, now_ms
from gateway import queue_positions
from gateway.queue_positions import QueuePositions
from gateway.store import Store
from tests.nats_server import NatsServer
from tests.unit.common.bus_rig import SERVER, SESSION, flushed, make_job, open_bus, until


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports come in milliseconds."""
    monkeypatch.setattr(queue_positions, "FIRST_AFTER_S", 0.01)
    monkeypatch.setattr(queue_positions, "PERIOD_MAX_S", 0.02)
    monkeypatch.setattr(queue_positions, "ROUND_PERIOD_S", 0.01)


@pytest.fixture
async def bus(nats_server: NatsServer) -> AsyncIterator[Bus]:
    async with open_bus(nats_server) as bus:
        await bus.ensure_server(SERVER, 1000)
        yield bus


class Way:
    """The way to a bus, as `gateway.store` is it, which the test may close."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.open = True
        self.asked = 0

    @property
    def bus(self) -> Bus:
        self.asked += 1
        if not self.open:
            raise StoreUnavailable("away")
        return self._bus


def positions_of(bus: Bus | Way) -> QueuePositions:
    return QueuePositions(cast(Store, bus if isinstance(bus, Way) else SimpleNamespace(bus=bus)))


@asynccontextmanager
async def telling(positions: QueuePositions) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(positions.run())
        yield
        task.cancel()


async def accept(bus: Bus, *positions: QueuePositions, **fields: Any) -> Job:
    """A job in the queue, which these tell of."""
    job = make_job(**fields)
    accepted = await bus.enqueue_job(job)
    for each in positions:
        each.add(job, accepted.job_seq, len(job.encode()))
    return job


async def take(bus: Bus, count: int = 1) -> None:
    """Workers take the next jobs and end them."""
    left = count
    async with bus.consume_jobs(SERVER, lambda: left) as deliveries:
        async for delivery in deliveries:
            left -= 1
            await delivery.ack()
            if not left:
                return


async def told(bus: Bus, job: Job) -> list[Event]:
    return [
        stored.event
        async for stored in bus.replay_session(job.session, 0)
        if stored.event.job == job.id and stored.event.type == "progress"
    ]


async def until_told(bus: Bus, job: Job, position: int) -> None:
    async def is_told() -> bool:
        last = await bus.last_position(job.session, job.id)
        return last is not None and last.event.data["position"] == position

    await until(is_told)


@asynccontextmanager
async def api_requests(bus: Bus) -> AsyncIterator[list[str]]:
    """What the store is asked meanwhile, by whomever."""
    subjects: list[str] = []

    async def heard(msg: Msg) -> None:
        subjects.append(msg.subject)

    subscription = await bus.client.subscribe("$JS.API.>", cb=heard)
    await flushed(bus)
    yield subjects
    await subscription.unsubscribe()


async def test_a_waiting_job_counts_down_as_those_ahead_are_taken(bus: Bus) -> None:
    """Also those of other sessions; those behind it and on other servers do not count."""
    positions = positions_of(bus)
    for session in ("s2", "s3", SESSION):
        await accept(bus, session=session)
    await accept(bus, server="other")
    async with telling(positions):
        job = await accept(bus, positions)
        await accept(bus, session="s2")
        for ahead in (3, 2, 1, 0):
            await until_told(bus, job, ahead)
            await take(bus)
        await until(lambda: not positions._jobs)

    events = await told(bus, job)
    assert [event.data for event in events] == [
        {"progress": 0, "total": 3, "message": f"3 jobs ahead in the queue of {SERVER}", "position": 3},
        {"progress": 1, "total": 3, "message": f"2 jobs ahead in the queue of {SERVER}", "position": 2},
        {"progress": 2, "total": 3, "message": f"1 job ahead in the queue of {SERVER}", "position": 1},
        {"progress": 3, "total": 3, "message": f"next in the queue of {SERVER}", "position": 0},
    ]
    assert {event.attempt for event in events} == {0}


async def test_a_position_that_has_not_changed_is_not_told_again(bus: Bus) -> None:
    """However often it was looked at; jobs that come behind change nothing."""
    positions = positions_of(bus)
    await accept(bus)
    async with telling(positions), api_requests(bus) as asked:
        job = await accept(bus, positions)
        await until(lambda: sum("CONSUMER.INFO" in subject for subject in asked) >= 3)
        for _ in range(5):
            await accept(bus)
        asked.clear()
        await until(lambda: sum("CONSUMER.INFO" in subject for subject in asked) >= 3)

    assert [event.data["position"] for event in await told(bus, job)] == [1]


async def test_a_round_asks_once_for_a_server_and_once_for_each_job(bus: Bus) -> None:
    """And nothing at all once no job waits."""
    positions = positions_of(way := Way(bus))
    async with api_requests(bus) as asked:
        jobs = [await accept(bus, positions) for _ in range(5)]
        asked.clear()
        async with telling(positions):
            for job in jobs:
                await until_told(bus, job, jobs.index(job))
            await take(bus, 5)
            await until(lambda: not positions._jobs and not positions._some.is_set())
            rounds = way.asked
            await flushed(bus)
            infos = sum("CONSUMER.INFO" in subject for subject in asked)
            looks = sum("DIRECT.GET.JOBS" in subject for subject in asked)
            asked.clear()
            for _ in range(20):
                await flushed(bus)
            idle = list(asked)

    assert (infos, idle, way.asked) == (rounds, [], rounds)
    assert looks <= 5 * rounds


async def test_a_job_that_was_taken_at_once_hears_nothing(bus: Bus) -> None:
    """One question for its server, and it is forgotten."""
    positions = positions_of(bus)
    job = await accept(bus, positions)
    await take(bus)
    async with telling(positions), api_requests(bus) as asked:
        await until(lambda: not positions._jobs)

    assert await told(bus, job) == []
    assert [subject for subject in asked if "DIRECT.GET.JOBS" in subject] == []


async def test_a_job_that_was_withdrawn_is_forgotten_and_those_behind_it_come_forward(bus: Bus) -> None:
    """A cancelled job waits no more."""
    positions = positions_of(bus)
    async with telling(positions):
        first, second = await accept(bus, positions), await accept(bus, positions)
        await until_told(bus, second, 1)
        await bus.withdraw_job(SERVER, SESSION, first.id)
        await until_told(bus, second, 0)
        await until(lambda: positions._jobs == {second.id})


async def test_a_job_that_waits_is_told_of_although_the_count_of_those_that_wait_is_too_low(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As nats-server may have it after a job was taken out of the queue."""

    async def too_low(server: str) -> QueueFront:
        return QueueFront(0, 0)

    monkeypatch.setattr(bus, "queue_front", too_low)
    positions = positions_of(bus)
    async with telling(positions):
        job = await accept(bus, positions)
        await until_told(bus, job, 0)
        assert positions._jobs == {job.id}


async def test_a_job_past_its_queue_deadline_is_forgotten(bus: Bus) -> None:
    """It ends by that, whoever stores the end."""
    positions = positions_of(bus)
    async with telling(positions):
        job = await accept(bus, positions, start_by_ms=now_ms() - 1)
        await until(lambda: not positions._jobs)

    assert await told(bus, job) == []


async def test_the_jobs_of_a_server_that_was_removed_are_forgotten(bus: Bus) -> None:
    """Nobody will take them."""
    positions = positions_of(bus)
    await accept(bus, positions)
    await bus.remove_server(SERVER)
    async with telling(positions):
        await until(lambda: not positions._jobs)


async def test_a_store_that_is_away_is_waited_for(bus: Bus) -> None:
    """Then it is told where the job stands by now."""
    positions = positions_of(way := Way(bus))
    for _ in range(2):
        await accept(bus)
    async with telling(positions):
        job = await accept(bus, positions)
        await until_told(bus, job, 2)
        way.open = False
        await take(bus)
        refused = way.asked + 3
        await until(lambda: way.asked >= refused)
        way.open = True
        await until_told(bus, job, 1)

    assert [event.data["progress"] for event in await told(bus, job)] == [0, 1]


async def test_a_report_whose_answer_was_lost_is_gone_on_from(bus: Bus) -> None:
    """It is stored: the next one comes behind it, and repeats nothing."""
    positions = positions_of(bus)
    for _ in range(2):
        await accept(bus)
    job = await accept(bus, positions)
    await bus.publish_position(SESSION, job.id, {"progress": 1, "total": 3, "message": "-", "position": 2}, 0)
    async with telling(positions):
        await until(lambda: any(waiting.last_seq for waiting in positions._due))
        await take(bus)
        await until_told(bus, job, 1)

    assert [(event.data["progress"], event.data["total"]) for event in await told(bus, job)] == [(1, 3), (2, 3)]


async def test_two_gateways_that_tell_of_one_job_repeat_nothing(bus: Bus) -> None:
    """A call that is repeated through another gateway is remembered there too; progress grows all the same."""
    one, two = positions_of(bus), positions_of(bus)
    for _ in range(6):
        await accept(bus)
    async with telling(one), telling(two):
        job = await accept(bus, one, two)
        for ahead in range(6, 0, -1):
            await until_told(bus, job, ahead)
            await take(bus)
        await until_told(bus, job, 0)

    assert [event.data["progress"] for event in await told(bus, job)] == list(range(7))


async def test_of_many_waiting_jobs_the_oldest_are_told_and_no_more_are_remembered_than_the_bound(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New ones wait untold; one that was known before has its turn."""
    monkeypatch.setattr(queue_positions, "MAX_WAITING", 3)
    monkeypatch.setattr(queue_positions, "REPORTS_PER_ROUND", 2)
    positions = positions_of(bus)
    jobs = [await accept(bus, positions) for _ in range(5)]
    assert positions._jobs == {job.id for job in jobs[:3]}
    async with telling(positions):
        await until_told(bus, jobs[1], 1)
        await take(bus, 2)
        await until_told(bus, jobs[2], 0)

    assert [len(await told(bus, job)) for job in jobs] == [1, 1, 1, 0, 0]


def test_a_round_reads_no_more_of_the_queue_than_its_share() -> None:
    """Each job's message comes with the answer: large ones are looked at one at a time."""
    job = SimpleNamespace(size=3 * 1024 * 1024)
    small = SimpleNamespace(size=1_000)

    assert [
        queue_positions._affordable(cast(Any, jobs))
        for jobs in ([], [job], [job, job], [small, job, job], [small] * 100)
    ] == [0, 1, 1, 2, 64]


async def test_looks_at_a_job_become_rarer(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """After 1, 2, 4, 8 and then every 15 seconds, as told to a clock that the test turns."""
    monkeypatch.setattr(queue_positions, "FIRST_AFTER_S", 1.0)
    monkeypatch.setattr(queue_positions, "PERIOD_MAX_S", 15.0)
    now = 0.0
    positions = QueuePositions(cast(Store, SimpleNamespace(bus=bus)), clock=lambda: now)
    await accept(bus)
    await accept(bus, positions)
    looked: list[float] = []
    for tick in range(120):
        now = tick / 2
        for server, jobs in positions._take_due().items():
            looked.append(now)
            await positions._round(server, jobs)

    assert looked == [1, 3, 7, 15, 30, 45]
