"""Leases on a real store: who holds one, and in which order its jobs come. No container is made here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

import worker.leases
from common import subjects
from common.buckets import Entry
from common.bus import Bus
from common.catalog import ServerSpec
from common.consumer import Delivery
from common.schema import Job, LeaseRecord
from common.streams import LEASES_BUCKET
from tests.nats_server import NatsServer
from tests.unit.common.bus_rig import (
    DEADLINE_S,
    SERVER,
    SESSION,
    be_impatient,
    flushed,
    make_job,
    open_bus,
    store_paused,
    until,
    until_depth,
)
from worker.boot_gate import BootGate
from worker.container import container_spec
from worker.docker_engine import DockerEngine, open_docker_engine
from worker.executors.mcp import McpExecutor
from worker.heartbeat import Heartbeat
from worker.leases import PARKED_LIMIT, Lease, Leases
from worker.output_stream import OutputLimits
from worker.pool import Pool
from worker.presence import micro_service

KEY = subjects.lease_key(SESSION, SERVER)

Deliver = Callable[..., Awaitable[list[Delivery]]]


@pytest.fixture
async def engine() -> AsyncIterator[DockerEngine]:
    """Of no daemon: nothing here asks it for anything."""
    async with open_docker_engine("unix:///nonexistent/docker.sock") as opened:
        yield opened


@pytest.fixture
async def deliver(bus: Bus) -> AsyncIterator[Deliver]:
    """Accepts so many jobs of a session and gets them from the queue, in their order."""
    await bus.ensure_server(SERVER, 1000)
    async with bus.consume_jobs(SERVER, lambda: 100) as consumer:
        iterator = aiter(consumer)

        async def delivered(count: int, session: str = SESSION) -> list[Delivery]:
            for _ in range(count):
                await bus.enqueue_job(make_job(session=session))
            async with asyncio.timeout(DEADLINE_S):
                return [await anext(iterator) for _ in range(count)]

        yield delivered


def empty_pool(engine: DockerEngine, tasks: asyncio.TaskGroup) -> Pool:
    spec = ServerSpec(image="none", scope="session")
    wanted = container_spec(SERVER, spec, {}, None, {})
    return Pool(SERVER, spec, wanted, McpExecutor(1.0, tasks, OutputLimits()), engine, tasks, BootGate(1))


@asynccontextmanager
async def a_lease(engine: DockerEngine) -> AsyncIterator[Lease]:
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        yield Lease(SESSION, 1, False, empty_pool(engine, tasks), 1.0)


async def settle() -> None:
    """Let every task that can go on go on."""
    for _ in range(5):
        await asyncio.sleep(0)


async def end(bus: Bus, lease: Lease, delivery: Delivery) -> None:
    """What a worker does with a job that has run."""
    with lease.running(delivery):
        await delivery.ack()
    await flushed(bus)


# --- the order of one lease -----------------------------------------------------------------------------------


async def test_jobs_of_a_lease_come_in_the_order_of_their_acceptance(
    bus: Bus, engine: DockerEngine, deliver: Deliver
) -> None:
    """In whichever order they were parked."""
    deliveries = await deliver(4)
    async with a_lease(engine) as lease:
        for delivery in (deliveries[2], deliveries[0], deliveries[3], deliveries[1]):
            assert lease.park(delivery)
        came = []
        for _ in deliveries:
            came.append(await lease.next_job(bus))
            await end(bus, lease, came[-1])

    assert came == deliveries


async def test_a_job_waits_for_an_older_one_that_is_on_its_way_from_another_worker(
    bus: Bus, engine: DockerEngine, deliver: Deliver
) -> None:
    """The queue tells that there is one."""
    first, second = await deliver(2)
    async with a_lease(engine) as lease, asyncio.TaskGroup() as tasks:
        lease.park(second)
        waiting = tasks.create_task(lease.next_job(bus))
        await flushed(bus)
        await flushed(bus)
        assert not waiting.done()
        lease.park(first)
        assert await waiting == first
        await end(bus, lease, first)
        assert await lease.next_job(bus) == second


async def test_a_job_does_not_wait_for_an_older_one_that_has_ended_elsewhere(
    bus: Bus, engine: DockerEngine, deliver: Deliver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled while it was queued, say: the queue is looked at again."""
    monkeypatch.setattr(worker.leases, "ORDER_RECHECK_S", 0.02)
    first, second = await deliver(2)
    async with a_lease(engine) as lease, asyncio.TaskGroup() as tasks:
        lease.park(second)
        waiting = tasks.create_task(lease.next_job(bus))
        await flushed(bus)
        assert not waiting.done()
        await bus.withdraw_job(SERVER, SESSION, first.job.id)

        assert await waiting == second


async def test_older_jobs_of_other_sessions_are_not_waited_for(
    bus: Bus, engine: DockerEngine, deliver: Deliver
) -> None:
    """Nor those of the session on another server."""
    await deliver(1, "s2")
    await bus.enqueue_job(make_job(server="other"))
    [mine] = await deliver(1)
    async with a_lease(engine) as lease:
        lease.park(mine)

        assert await lease.next_job(bus) == mine


async def test_a_job_whose_acknowledgement_is_on_its_way_does_not_hold_up_the_next(
    bus: Bus, engine: DockerEngine, deliver: Deliver
) -> None:
    """What this lease has run is not waited for, whether the queue knows it yet or not."""
    first, second = await deliver(2)
    async with a_lease(engine) as lease:
        lease.park(first)
        lease.park(second)
        assert await lease.next_job(bus) == first
        with lease.running(first):
            pass  # not acknowledged

        assert await lease.next_job(bus) == second


async def test_a_lease_without_jobs_waits_for_one(bus: Bus, engine: DockerEngine, deliver: Deliver) -> None:
    """Without asking the store."""
    async with a_lease(engine) as lease, asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(lease.next_job(bus))
        await settle()
        [delivery] = await deliver(1)
        assert not waiting.done()
        lease.park(delivery)

        assert await waiting == delivery


async def test_a_lease_that_is_emptied_while_it_asks_for_the_order_waits_on(
    bus: Bus, engine: DockerEngine, deliver: Deliver
) -> None:
    """A drain hands its jobs back in that moment; the lease may still get one."""
    first, second = await deliver(2)
    async with a_lease(engine) as lease, asyncio.TaskGroup() as tasks:
        lease.park(first)
        with store_paused():
            waiting = tasks.create_task(lease.next_job(bus))
            await settle()
            assert lease.unpark_all() == [first]
        await flushed(bus)
        await settle()
        assert not waiting.done()
        await bus.withdraw_job(SERVER, SESSION, first.job.id)
        lease.park(second)

        assert await waiting == second


async def test_while_the_store_is_away_a_lease_does_not_guess_the_order(
    engine: DockerEngine, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits until it can be told."""
    be_impatient(monkeypatch, 0.1)
    monkeypatch.setattr(worker.leases, "ORDER_RECHECK_S", 0.02)
    async with open_bus(nats_server) as bus:
        await bus.ensure_server(SERVER, 10)
        job = make_job()
        await bus.enqueue_job(job)
        async with bus.consume_jobs(SERVER, lambda: 1) as consumer:
            delivery = await anext(aiter(consumer))
        async with a_lease(engine) as lease, asyncio.TaskGroup() as tasks:
            lease.park(delivery)
            with store_paused():
                sent = bus.client.stats["out_msgs"]
                waiting = tasks.create_task(lease.next_job(bus))
                await until(lambda: bus.client.stats["out_msgs"] >= sent + 3)  # it has asked, and asked again
                assert not waiting.done()

            assert await waiting == delivery


async def test_a_line_has_an_end_and_a_repeated_delivery_takes_no_second_place(
    engine: DockerEngine, deliver: Deliver
) -> None:
    """The later delivery counts, because the ack subject of the earlier is void."""
    deliveries = await deliver(PARKED_LIMIT + 1)
    again = Delivery(**{**vars(deliveries[0]), "deliveries": 2})
    async with a_lease(engine) as lease:
        parked = [lease.park(delivery) for delivery in deliveries]
        assert parked == [True] * PARKED_LIMIT + [False]
        assert lease.park(again)

        assert lease.unpark_all() == [again, *deliveries[1:PARKED_LIMIT]]
        assert lease.unpark_all() == []


async def test_a_lease_is_idle_only_without_jobs_parked_or_running(engine: DockerEngine, deliver: Deliver) -> None:
    """Then for as long as it was last used."""
    [delivery] = await deliver(1)
    async with a_lease(engine) as lease:
        await until(lambda: lease.idle_s > 0)
        lease.park(delivery)
        assert lease.idle_s == 0
        lease.unpark_all()
        with lease.running(delivery):
            assert lease.idle_s == 0
            assert not lease.quiet.is_set()
        assert lease.quiet.is_set()
        await until(lambda: lease.idle_s > 0)


# --- who holds it -----------------------------------------------------------------------------------------------


class Holder:
    """One worker's leases of the server, on a connection of its own, reachable for handoffs."""

    def __init__(self, name: str, bus: Bus, engine: DockerEngine, tasks: asyncio.TaskGroup, idle_s: float) -> None:
        self.name = name
        self.bus = bus
        self.begun: asyncio.Queue[Job] = asyncio.Queue()
        self.ran: asyncio.Queue[Job] = asyncio.Queue()
        self.let_run = asyncio.Event()
        self.let_run.set()
        self._tasks = tasks
        self.leases = Leases(
            bus,
            name,
            SERVER,
            empty_pool(engine, tasks),
            Heartbeat(30),
            tasks,
            self._work,
            idle_s=idle_s,
            acquire_timeout_s=1,
        )

    async def _work(self, lease: Lease) -> None:
        while True:
            delivery = await lease.next_job(self.bus)
            with lease.running(delivery):
                self.begun.put_nowait(delivery.job)
                await self.let_run.wait()
                await delivery.ack()
                self.ran.put_nowait(delivery.job)

    @asynccontextmanager
    async def reachable(self) -> AsyncIterator[None]:
        async with micro_service(self.bus, self.name, dict, self.leases.receive):
            await flushed(self.bus)
            yield


@asynccontextmanager
async def holders(
    nats_server: NatsServer, *names: str, idle_s: float = 3600, ttl_s: float = 30
) -> AsyncIterator[list[Holder]]:
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(open_docker_engine("unix:///nonexistent/docker.sock"))
        buses = [await stack.enter_async_context(open_bus(nats_server, lease_ttl_s=ttl_s)) for _ in names]
        await buses[0].ensure_server(SERVER, 1000)
        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
            made = [Holder(name, bus, engine, tasks, idle_s) for name, bus in zip(names, buses, strict=True)]
            async with AsyncExitStack() as reach:
                for holder in made:
                    await reach.enter_async_context(holder.reachable())
                yield made
            for holder in made:
                await holder.leases.close()


async def pulled(holder: Holder, count: int = 1) -> list[Delivery]:
    """Jobs of the session that this worker has got from the queue."""
    for _ in range(count):
        await holder.bus.enqueue_job(make_job())
    found: list[Delivery] = []
    async with holder.bus.consume_jobs(SERVER, lambda: count - len(found)) as consumer:
        async for delivery in consumer:
            found.append(delivery)
            if len(found) == count:
                break
    return found


async def until_lease(bus: Bus, holds: Callable[[Entry], bool]) -> None:
    async def held() -> bool:
        return holds(await bus.get(LEASES_BUCKET, KEY))

    await until(held)


async def record(bus: Bus) -> LeaseRecord | None:
    entry = await bus.get(LEASES_BUCKET, KEY)
    return None if entry.value is None else LeaseRecord.decode(entry.value)


async def test_the_first_worker_that_pulls_a_job_of_a_session_holds_its_lease(nats_server: NatsServer) -> None:
    """The store knows it."""
    async with holders(nats_server, "w-1") as [holder]:
        deliveries = await pulled(holder, 2)
        for delivery in deliveries:
            await holder.leases.place(delivery)

        assert [await holder.ran.get() for _ in range(2)] == [delivery.job for delivery in deliveries]
        assert await record(holder.bus) == LeaseRecord(worker="w-1", container="")
        assert len(holder.leases) == 1


async def test_a_job_that_another_worker_pulls_is_handed_to_the_holder(nats_server: NatsServer) -> None:
    """Acknowledgement and all; the other one holds nothing."""
    async with holders(nats_server, "w-1", "w-2") as [first, second]:
        [one] = await pulled(first)
        await first.leases.place(one)
        await first.ran.get()
        [two] = await pulled(second)
        await second.leases.place(two)

        assert await first.ran.get() == two.job
        assert (len(first.leases), len(second.leases)) == (1, 0)
        await until_depth(first.bus, 0, 0)


async def test_a_lease_whose_holder_is_gone_is_taken_over(nats_server: NatsServer) -> None:
    """Nobody answers for it, so its time is not waited for."""
    async with holders(nats_server, "w-2") as [holder]:
        gone = LeaseRecord(worker="w-gone", container="c").encode()
        revision = await holder.bus.replace(LEASES_BUCKET, KEY, gone, 0, ttl_s=3600)
        [delivery] = await pulled(holder)
        await holder.leases.place(delivery)

        assert await holder.ran.get() == delivery.job
        assert await record(holder.bus) == LeaseRecord(worker="w-2", container="")
        assert (await holder.bus.get(LEASES_BUCKET, KEY)).revision == revision + 1


async def test_an_unreadable_lease_is_taken_over(nats_server: NatsServer) -> None:
    """Of a newer version, say: it must not lock the session out."""
    async with holders(nats_server, "w-2") as [holder]:
        await holder.bus.replace(LEASES_BUCKET, KEY, b"\xc1", 0)
        [delivery] = await pulled(holder)
        await holder.leases.place(delivery)

        assert await holder.ran.get() == delivery.job


async def test_two_workers_that_claim_a_session_at_once_end_with_one_holder(nats_server: NatsServer) -> None:
    """Every job runs, all of them there."""
    async with holders(nats_server, "w-1", "w-2") as [first, second]:
        one, two = [(await pulled(holder))[0] for holder in (first, second)]
        await asyncio.gather(first.leases.place(one), second.leases.place(two))
        holder = first if len(first.leases) else second

        assert (len(first.leases), len(second.leases)) in [(1, 0), (0, 1)]
        assert [await holder.ran.get() for _ in range(2)] == [one.job, two.job]


async def test_a_holder_with_a_full_line_leaves_the_job_in_the_queue(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a while: it is handed back, and not taken away from its session."""
    monkeypatch.setattr(worker.leases, "CLAIM_RETRY_S", 0.001)
    monkeypatch.setattr(worker.leases, "HAND_BACK_DELAY_S", 0.01)
    async with holders(nats_server, "w-1", "w-2") as [first, second]:
        first.let_run.clear()
        running, *waiting = await pulled(first, PARKED_LIMIT + 1)
        await first.leases.place(running)
        assert await first.begun.get() == running.job
        for delivery in waiting:
            await first.leases.place(delivery)
        [late] = await pulled(second)
        await second.leases.place(late)
        async with second.bus.consume_jobs(SERVER, lambda: 1) as consumer:
            again = await anext(aiter(consumer))

        assert (again.job, again.deliveries) == (late.job, 2)
        assert len(second.leases) == 0
        first.let_run.set()


async def test_a_lease_that_is_given_up_is_free_and_remembered(nats_server: NatsServer) -> None:
    """The next holder is told that there was one before."""
    async with holders(nats_server, "w-1", "w-2") as [first, second]:
        [one] = await pulled(first)
        await first.leases.place(one)
        await first.ran.get()
        first.leases.give_up(SESSION)
        first.leases.give_up(SESSION)
        await until_lease(second.bus, lambda entry: entry.value is None)
        assert (await second.bus.get(LEASES_BUCKET, KEY)).revision > 0
        [two] = await pulled(second)
        await second.leases.place(two)

        assert await second.ran.get() == two.job
        assert (len(first.leases), len(second.leases)) == (0, 1)


async def test_a_drain_hands_back_the_jobs_of_a_lease_and_keeps_it_while_one_runs(nats_server: NatsServer) -> None:
    """What has not started may start elsewhere, but not beside what runs here."""
    async with holders(nats_server, "w-1") as [holder]:
        holder.let_run.clear()
        running, *waiting = await pulled(holder, 3)
        await holder.leases.place(running)
        assert await holder.begun.get() == running.job
        for delivery in waiting:
            await holder.leases.place(delivery)
        await holder.leases.drain()
        async with holder.bus.consume_jobs(SERVER, lambda: 5) as consumer:
            iterator = aiter(consumer)
            again = [await anext(iterator) for _ in waiting]
        assert len(holder.leases) == 1
        holder.let_run.set()

    assert [(delivery.job, delivery.deliveries) for delivery in again] == [(each.job, 2) for each in waiting]


async def test_a_drain_gives_up_a_lease_of_which_nothing_runs(nats_server: NatsServer) -> None:
    """Its session may go on elsewhere while other sessions' jobs end here."""
    async with holders(nats_server, "w-1", "w-2") as [first, second]:
        [one] = await pulled(first)
        await first.leases.place(one)
        await first.ran.get()
        await first.leases.drain()
        await until_lease(second.bus, lambda entry: entry.value is None)
        [two] = await pulled(second)
        await second.leases.place(two)

        assert await second.ran.get() == two.job
        assert (len(first.leases), len(second.leases)) == (0, 1)


async def test_a_used_lease_is_renewed_and_an_idle_one_is_given_up(nats_server: NatsServer) -> None:
    """By `keep()`; it lapses by itself only if nobody renews it."""
    async with holders(nats_server, "w-1", idle_s=0.3, ttl_s=1) as [holder], asyncio.TaskGroup() as tasks:
        keeping = tasks.create_task(holder.leases.keep())
        holder.let_run.clear()
        [one] = await pulled(holder)
        await holder.leases.place(one)
        first = (await holder.bus.get(LEASES_BUCKET, KEY)).revision
        await until_lease(holder.bus, lambda entry: entry.revision >= first + 3)
        assert len(holder.leases) == 1
        holder.let_run.set()
        await until_lease(holder.bus, lambda entry: entry.value is None)
        assert len(holder.leases) == 0
        keeping.cancel()


async def test_a_holder_that_lost_its_lease_lets_go_of_it(nats_server: NatsServer) -> None:
    """Another worker has it: its key is not taken away from it."""
    async with holders(nats_server, "w-1", ttl_s=1) as [holder], asyncio.TaskGroup() as tasks:
        [one] = await pulled(holder)
        await holder.leases.place(one)
        await holder.ran.get()
        entry = await holder.bus.get(LEASES_BUCKET, KEY)
        theirs = LeaseRecord(worker="w-other", container="")
        await holder.bus.replace(LEASES_BUCKET, KEY, theirs.encode(), entry.revision, ttl_s=3600)
        keeping = tasks.create_task(holder.leases.keep())
        await until(lambda: len(holder.leases) == 0)
        keeping.cancel()

    async with open_bus(nats_server, lease_ttl_s=1) as bus:
        assert await record(bus) == theirs


async def test_a_lease_that_is_given_up_while_it_is_renewed_is_not_lost_as_well(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its key is another's by the time that the store answers; the worker goes on keeping the others."""
    async with holders(nats_server, "w-1", ttl_s=1) as [holder], asyncio.TaskGroup() as tasks:
        [one] = await pulled(holder)
        await holder.leases.place(one)
        await holder.ran.get()
        entry = await holder.bus.get(LEASES_BUCKET, KEY)
        theirs = LeaseRecord(worker="w-other", container="").encode()
        await holder.bus.replace(LEASES_BUCKET, KEY, theirs, entry.revision, ttl_s=3600)
        renew, refused = holder.bus.replace, asyncio.Event()

        async def given_up_meanwhile(bucket: str, key: str, value: bytes, revision: int, ttl_s: float) -> int:
            holder.leases.give_up(SESSION)
            try:
                return await renew(bucket, key, value, revision, ttl_s=ttl_s)
            finally:
                refused.set()

        monkeypatch.setattr(holder.bus, "replace", given_up_meanwhile)
        keeping = tasks.create_task(holder.leases.keep())
        await refused.wait()
        await settle()

        assert not keeping.done()
        keeping.cancel()
