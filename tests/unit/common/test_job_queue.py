"""What the queue of jobs tells: how many a session has, how far the workers are, and where one job stands."""

from __future__ import annotations

import asyncio

import pytest

from common.bus import Bus
from common.errors import StoreUnavailable
from common.job_queue import QueueFront
from tests.nats_server import NatsServer
from tests.unit.common.bus_rig import DEADLINE_S, SERVER, SESSION, make_job, open_bus, until, until_depth


async def test_the_jobs_of_a_session_are_counted_over_all_servers(bus: Bus) -> None:
    """Those that wait and those that run, until they are acknowledged; other sessions do not count."""
    await bus.ensure_server(SERVER, 10)
    assert await bus.count_jobs(SESSION) == 0
    for job in (make_job(), make_job(), make_job(server="other"), make_job(session="s2")):
        await bus.enqueue_job(job)
    assert await bus.count_jobs(SESSION) == 3
    async with bus.consume_jobs(SERVER, lambda: 1) as consumer:
        delivery = await anext(aiter(consumer))
        consumer.stop_asking()
        assert await bus.count_jobs(SESSION) == 3
        await delivery.ack()
        await until_depth(bus, 2, 0)

    async def one_is_gone() -> bool:
        return await bus.count_jobs(SESSION) == 2

    await until(one_is_gone)
    assert await bus.count_jobs("s2") == 1


async def test_the_front_of_a_queue_moves_with_the_deliveries(bus: Bus) -> None:
    """A job that was delivered waits no more, acknowledged or not; other servers' jobs do not count."""
    assert await bus.queue_front("unknown") is None
    await bus.ensure_server(SERVER, 10)
    await bus.enqueue_job(make_job(server="other"))
    for _ in range(3):
        await bus.enqueue_job(make_job())
    assert await bus.queue_front(SERVER) == QueueFront(0, 3)
    async with bus.consume_jobs(SERVER, lambda: 1) as consumer:
        delivery = await anext(aiter(consumer))
        consumer.stop_asking()
        assert await bus.queue_front(SERVER) == QueueFront(delivery.stream_seq, 2)


async def test_the_jobs_behind_one_are_those_of_its_server_that_came_later(bus: Bus) -> None:
    """Of all sessions; what stands before it does not count."""
    jobs = [make_job(), make_job(session="s2"), make_job(server="other"), make_job(session="s3"), make_job()]
    numbers = [(await bus.enqueue_job(job)).job_seq for job in jobs]
    behind = [await bus.jobs_behind(job.server, job.id, number) for job, number in zip(jobs, numbers, strict=True)]

    assert behind == [3, 2, 0, 1, 0]


async def test_a_job_that_has_left_the_queue_has_none_behind_it(bus: Bus) -> None:
    """Also where another one follows, where it was the last, and where its number is another job's."""
    jobs = [make_job(), make_job(), make_job()]
    numbers = [(await bus.enqueue_job(job)).job_seq for job in jobs]
    await bus.delete_job(numbers[0])
    await bus.delete_job(numbers[2])

    assert await bus.jobs_behind(SERVER, jobs[0].id, numbers[0]) is None
    assert await bus.jobs_behind(SERVER, jobs[2].id, numbers[2]) is None
    assert await bus.jobs_behind(SERVER, jobs[0].id, numbers[1]) is None
    assert await bus.jobs_behind(SERVER, jobs[1].id, numbers[1]) == 0


async def test_a_queue_that_is_not_there_is_a_store_that_does_not_answer(nats_server: NatsServer) -> None:
    """The stream may have no leader now: nothing is concluded from that."""
    async with open_bus(nats_server) as bus:
        await bus.client.jetstream().delete_stream("JOBS")
        async with asyncio.timeout(DEADLINE_S):
            with pytest.raises(StoreUnavailable):
                await bus.jobs_behind(SERVER, "j1", 1)
            with pytest.raises(StoreUnavailable):
                await bus.count_jobs(SESSION)
