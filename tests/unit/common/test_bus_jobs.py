"""Jobs in the store: accepted once, bounded, counted, withdrawn."""

from __future__ import annotations

import asyncio

import pytest

from common import headers, subjects
from common.bus import Bus
from common.errors import QueueFull
from common.schema import Job
from common.streams import JOBS
from common.subjects import new_job_id
from tests.nats_server import NatsServer
from tests.unit.common.bus_rig import DEADLINE_S, SERVER, SESSION, counted, make_event, make_job, open_bus

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def events_of(bus: Bus, session: str) -> list[tuple[int, str, str]]:
    return [(found.seq, found.event.job, found.event.type) async for found in bus.replay_session(session, 0)]


async def message_count(bus: Bus, stream: str) -> int:
    return int((await bus.client.jetstream().stream_info(stream)).state.messages)


async def until_unfinished(bus: Bus, session: str, jobs: list[str]) -> None:
    """An acknowledgement takes a moment to remove its job."""
    async with asyncio.timeout(DEADLINE_S):
        while await bus.unfinished_jobs(session) != jobs:
            pass


async def test_an_accepted_job_is_a_queued_event_and_a_message_in_the_queue(bus: Bus) -> None:
    """The answer is the numbers of both; the trace of the request goes with the message."""
    accepted = counted("jobs_accepted_total", server=SERVER)
    job = make_job(arguments={"text": "hello"}, meta={"m": 1})
    seq, job_seq = await bus.enqueue_job(job, TRACEPARENT)
    queued = await bus.last_event(job.session, job.id)
    message = await bus.client.jetstream().get_last_msg(JOBS, subjects.jobs(SERVER, SESSION))

    assert queued is not None
    assert (queued.seq, queued.event.type, queued.event.attempt) == (seq, "queued", 0)
    assert queued.event.data == {"server": SERVER, "tool": "echo"}
    assert message.data is not None
    assert message.seq == job_seq
    assert Job.decode(message.data) == job
    assert message.headers == {headers.MSG_ID: job.id, headers.TRACEPARENT: TRACEPARENT}
    assert counted("jobs_accepted_total", server=SERVER) == accepted + 1


async def test_a_job_id_is_accepted_once(bus: Bus, nats_server: NatsServer) -> None:
    """Whichever gateway tries a second time gets the first one's number; nothing is queued twice."""
    job = make_job()
    accepted = await bus.enqueue_job(job)

    async with open_bus(nats_server) as other:
        assert await other.enqueue_job(job) == accepted
    assert await events_of(bus, SESSION) == [(accepted.seq, job.id, "queued")]
    assert await message_count(bus, JOBS) == 1


async def test_a_full_queue_is_refused_and_leaves_nothing_behind(nats_server: NatsServer) -> None:
    """The limit is one session's on one server; the store itself holds it, so it holds over all gateways."""
    async with open_bus(nats_server, queue_limit=2) as bus, open_bus(nats_server, queue_limit=2) as other:
        kept = [make_job(), make_job()]
        await bus.enqueue_job(kept[0])
        await other.enqueue_job(kept[1])
        for door in (bus, other):
            with pytest.raises(QueueFull) as refused:
                await door.enqueue_job(make_job())
            assert refused.value.data == {"server": SERVER, "limit": 2, "depth": 2, "retry_after_s": 1.0}

        assert [(job, type_) for _, job, type_ in await events_of(bus, SESSION)] == [(j.id, "queued") for j in kept]
        assert await bus.unfinished_jobs(SESSION) == [job.id for job in kept]


async def test_a_refused_job_leaves_nothing_behind_on_a_busy_store_either(nats_server: NatsServer) -> None:
    """The store writes its streams independently: the refusal may come before the event is there to be taken back."""
    async with open_bus(nats_server, queue_limit=1) as bus, open_bus(nats_server, queue_limit=1) as busy:

        async def refused() -> None:
            with pytest.raises(QueueFull):
                await bus.enqueue_job(make_job())

        await bus.enqueue_job(make_job())
        for _ in range(15):
            async with asyncio.TaskGroup() as tasks:
                for number in range(10):
                    noise = make_event(f"{new_job_id()}-{number}", session="s2", text="x" * 20_000)
                    tasks.create_task(busy.publish_event(noise, expected=0))
                for _ in range(10):
                    tasks.create_task(refused())

        assert len(await events_of(bus, SESSION)) == 1


async def test_a_full_queue_is_nobody_elses(nats_server: NatsServer) -> None:
    """Other sessions on the server, and other servers for the session, go on."""
    async with open_bus(nats_server, queue_limit=1) as bus:
        await bus.enqueue_job(make_job())
        with pytest.raises(QueueFull):
            await bus.enqueue_job(make_job())
        await bus.enqueue_job(make_job(session="s2"))
        await bus.enqueue_job(make_job(server="other"))

        assert await message_count(bus, JOBS) == 3


async def test_a_queue_has_room_again_when_a_job_has_left_it(nats_server: NatsServer) -> None:
    """By its end or by being withdrawn."""
    async with open_bus(nats_server, queue_limit=1) as bus:
        await bus.ensure_server(SERVER, 10)
        await bus.enqueue_job(make_job())
        async with bus.consume_jobs(SERVER, lambda: 1) as consumer:
            await (await anext(aiter(consumer))).ack()
            await until_unfinished(bus, SESSION, [])
            consumer.stop_asking()
        second = make_job()
        await bus.enqueue_job(second)
        await bus.withdraw_job(SERVER, SESSION, second.id)

        await bus.enqueue_job(make_job())


async def test_a_withdrawn_job_is_gone_and_its_neighbours_are_not(bus: Bus) -> None:
    """It is known by its id, among all jobs of its session on the server."""
    jobs = [make_job() for _ in range(3)]
    elsewhere = [make_job(session="s2"), make_job(server="other")]
    for job in jobs + elsewhere:
        await bus.enqueue_job(job)
    await bus.withdraw_job(SERVER, SESSION, jobs[1].id)

    assert await bus.unfinished_jobs(SESSION) == [jobs[0].id, jobs[2].id, elsewhere[1].id]
    assert await bus.unfinished_jobs("s2") == [elsewhere[0].id]


async def test_withdrawing_a_job_that_is_not_queued_changes_nothing(bus: Bus) -> None:
    """It may have ended meanwhile, or be another session's."""
    job = make_job()
    await bus.enqueue_job(job)
    await bus.withdraw_job(SERVER, "s2", job.id)
    await bus.withdraw_job("other", SESSION, job.id)
    await bus.withdraw_job(SERVER, SESSION, "never")

    assert await bus.unfinished_jobs(SESSION) == [job.id]


async def test_the_oldest_job_of_a_session_on_a_server_is_the_first_that_has_not_ended(bus: Bus) -> None:
    """By its number in the queue; other sessions and servers do not count."""
    await bus.ensure_server(SERVER, 10)
    assert await bus.oldest_job_seq(SERVER, SESSION) is None
    for job in (make_job(session="s2"), make_job(), make_job(server="other"), make_job()):
        await bus.enqueue_job(job)

    assert await bus.oldest_job_seq(SERVER, SESSION) == 2
    assert await bus.oldest_job_seq(SERVER, SESSION, after=1) == 2
    assert await bus.oldest_job_seq(SERVER, SESSION, after=2) == 4
    assert await bus.oldest_job_seq(SERVER, SESSION, after=4) is None
    assert await bus.oldest_job_seq("other", SESSION) == 3


async def test_the_depth_of_a_queue_tells_the_waiting_and_the_running_apart(bus: Bus) -> None:
    """A delivered job runs until it is acknowledged; a server without a queue has no jobs."""
    assert await bus.queue_depth("unknown") == (0, 0)
    await bus.ensure_server(SERVER, 10)
    for _ in range(3):
        await bus.enqueue_job(make_job())
    assert await bus.queue_depth(SERVER) == (3, 0)
    async with bus.consume_jobs(SERVER, lambda: 1) as consumer:
        delivery = await anext(aiter(consumer))
        consumer.stop_asking()
        assert await bus.queue_depth(SERVER) == (2, 1)
        await delivery.ack()
        async with asyncio.timeout(DEADLINE_S):
            while await bus.queue_depth(SERVER) != (2, 0):
                pass


async def test_the_age_of_a_queue_is_that_of_its_oldest_job(bus: Bus) -> None:
    """One that runs is still in it."""
    await bus.ensure_server(SERVER, 10)
    assert await bus.oldest_job_age_s(SERVER) is None
    await bus.enqueue_job(make_job())
    async with bus.consume_jobs(SERVER, lambda: 1) as consumer:
        await anext(aiter(consumer))
        age_s = await bus.oldest_job_age_s(SERVER)
        await bus.enqueue_job(make_job())
        later_s = await bus.oldest_job_age_s(SERVER)

    assert age_s is not None
    assert later_s is not None
    assert 0 <= age_s <= later_s < DEADLINE_S


async def test_a_cluster_wide_limit_holds_over_all_workers(bus: Bus, nats_server: NatsServer) -> None:
    """The store delivers no more than `max_in_flight` until one is acknowledged."""
    await bus.ensure_server(SERVER, 2)
    for _ in range(4):
        await bus.enqueue_job(make_job())
    async with (
        open_bus(nats_server) as other,
        bus.consume_jobs(SERVER, lambda: 4) as one,
        other.consume_jobs(SERVER, lambda: 4) as two,
    ):
        async with asyncio.timeout(DEADLINE_S):
            while await bus.queue_depth(SERVER) != (2, 2):
                pass
        ends = [asyncio.ensure_future(anext(aiter(consumer))) for consumer in (one, two)]
        done, _ = await asyncio.wait(ends, timeout=DEADLINE_S, return_when=asyncio.FIRST_COMPLETED)
        await done.pop().result().ack()
        async with asyncio.timeout(DEADLINE_S):
            while await bus.queue_depth(SERVER) != (1, 2):
                pass
        for end in ends:
            end.cancel()
        await asyncio.wait(ends)
