"""Pulling jobs by credit, on a real store."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from nats.aio.msg import Msg

import common.consumer
from common import headers, subjects
from common.bus import Bus
from common.consumer import Delivery, JobConsumer
from common.schema import DeadLetter, Job
from common.streams import DEAD_LETTERS, JOBS
from tests.nats_server import NatsServer
from tests.unit.common.bus_rig import (
    DEADLINE_S,
    SERVER,
    SESSION,
    flushed,
    make_event,
    make_job,
    open_bus,
    until,
    until_depth,
)

POISON = b"\xc1 no msgpack"


class Room:
    """What a worker can take now, as the test says."""

    def __init__(self, free: int) -> None:
        self.free = free

    def __call__(self) -> int:
        return self.free


@pytest.fixture
async def queue(bus: Bus) -> Bus:
    """A store on which the server has its queue."""
    await bus.ensure_server(SERVER, 1000)
    return bus


@pytest.fixture
def no_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the look that a consumer takes every few seconds anyway: it has to know by itself when to ask."""
    monkeypatch.setattr(common.consumer, "PULL_EXPIRES_S", 20_000.0)
    monkeypatch.setattr(common.consumer, "PULL_HEARTBEAT_S", 3600.0)


@asynccontextmanager
async def asked(bus: Bus) -> AsyncIterator[Callable[[], AsyncIterator[int]]]:
    """Sees every pull request: iterate to get how many jobs each asks for."""
    requests: asyncio.Queue[int] = asyncio.Queue()

    async def note(msg: Msg) -> None:
        requests.put_nowait(json.loads(msg.data)["batch"])

    async def each() -> AsyncIterator[int]:
        while True:
            async with asyncio.timeout(DEADLINE_S):
                yield await requests.get()

    subscription = await bus.client.subscribe(subjects.pull_request(JOBS, SERVER), cb=note)
    await flushed(bus)
    yield each
    await subscription.unsubscribe()


async def enqueue(bus: Bus, count: int, session: str = SESSION) -> list[Job]:
    jobs = [make_job(session=session) for _ in range(count)]
    for job in jobs:
        await bus.enqueue_job(job)
    return jobs


async def take(consumer: JobConsumer, count: int) -> list[Delivery]:
    found: list[Delivery] = []
    async with asyncio.timeout(DEADLINE_S):
        async for delivery in consumer:
            found.append(delivery)
            if len(found) == count:
                break
    return found


async def has_settled(bus: Bus) -> None:
    """Whatever the consumer was going to send it has sent, and the store has seen it."""
    for _ in range(3):
        await flushed(bus)


# --- deliveries -----------------------------------------------------------------------------------------------


async def test_a_delivery_is_the_job_with_all_that_it_takes_to_settle_it(queue: Bus) -> None:
    """Its bytes as they were stored, its place in the queue, its trace."""
    job = make_job(arguments={"a": 1})
    await queue.enqueue_job(job, "00-1-2-03")
    async with queue.consume_jobs(SERVER, Room(1)) as consumer:
        [delivery] = await take(consumer, 1)

    assert (delivery.job, delivery.payload) == (job, job.encode())
    assert (delivery.stream_seq, delivery.deliveries, delivery.traceparent) == (1, 1, "00-1-2-03")


async def test_jobs_come_in_the_order_in_which_they_were_accepted(queue: Bus) -> None:
    """Over all sessions."""
    jobs = [job for number in range(20) for job in await enqueue(queue, 1, f"s{number % 3}")]
    async with queue.consume_jobs(SERVER, Room(100)) as consumer:
        found = await take(consumer, 20)

    assert [delivery.job.id for delivery in found] == [job.id for job in jobs]


async def test_a_job_comes_the_moment_that_it_is_accepted(queue: Bus) -> None:
    """The pull stands already: nobody polls."""
    async with queue.consume_jobs(SERVER, Room(1)) as consumer:
        await until(lambda: consumer.credit == 1)
        [job] = await enqueue(queue, 1)
        [delivery] = await take(consumer, 1)

    assert delivery.job == job


async def test_an_acknowledged_job_has_left_the_queue(queue: Bus) -> None:
    """And nothing else has."""
    await enqueue(queue, 2)
    async with queue.consume_jobs(SERVER, Room(2)) as consumer:
        first, _ = await take(consumer, 2)
        await first.ack()
        await until_depth(queue, 0, 1)


async def test_a_job_that_is_handed_back_is_delivered_again_and_counted(queue: Bus) -> None:
    """To whoever has room; at once, or after the delay that was asked for."""
    [job] = await enqueue(queue, 1)
    async with queue.consume_jobs(SERVER, Room(1)) as consumer:
        [first] = await take(consumer, 1)
        await first.hand_back()
        consumer.wake()
        [second] = await take(consumer, 1)
        begun = asyncio.get_running_loop().time()
        await second.hand_back(0.2)
        consumer.wake()
        [third] = await take(consumer, 1)
        waited_s = asyncio.get_running_loop().time() - begun

    assert [(delivery.job.id, delivery.deliveries) for delivery in (first, second, third)] == [
        (job.id, 1), (job.id, 2), (job.id, 3)
    ]  # fmt: skip
    assert waited_s >= 0.2


async def test_a_job_of_a_worker_that_is_lost_is_delivered_again_after_ack_wait(nats_server: NatsServer) -> None:
    """A heartbeat restarts the wait."""
    async with open_bus(nats_server, ack_wait_s=1) as bus:
        await bus.ensure_server(SERVER, 10)
        lost, kept = await enqueue(bus, 2)
        async with bus.consume_jobs(SERVER, Room(3)) as consumer:
            deliveries = {delivery.job.id: delivery for delivery in await take(consumer, 2)}
            again: list[str] = []
            async with asyncio.timeout(DEADLINE_S):
                iterator = aiter(consumer)
                waiting = asyncio.ensure_future(anext(iterator))
                while len(again) < 2:
                    await deliveries[kept.id].in_progress()
                    done, _ = await asyncio.wait({waiting}, timeout=0.1)
                    if done:
                        again.append(waiting.result().job.id)
                        waiting = asyncio.ensure_future(anext(iterator))
                waiting.cancel()
                await asyncio.wait({waiting})

    assert again == [lost.id, lost.id]


# --- room -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_second_look")
async def test_no_more_jobs_are_asked_for_than_there_is_room(queue: Bus) -> None:
    """Also while jobs that have come are not yet taken up, and whoever wakes the consumer in between."""
    await enqueue(queue, 10)
    async with asked(queue) as requests, queue.consume_jobs(SERVER, Room(3)) as consumer:
        batch = aiter(requests())
        assert await anext(batch) == 3
        await until_depth(queue, 7, 3)
        await until(lambda: consumer.credit == 0)
        for _ in range(5):
            consumer.wake()
            await has_settled(queue)
        assert consumer.outstanding == 3
        assert await queue.queue_depth(SERVER) == (7, 3)

        await take(consumer, 3)
        consumer.wake()
        assert await anext(batch) == 3


@pytest.mark.usefixtures("no_second_look")
async def test_without_room_nothing_is_asked_for_until_there_is_some(queue: Bus) -> None:
    """A slot that comes free wakes the consumer."""
    await enqueue(queue, 3)
    room = Room(0)
    async with asked(queue) as requests, queue.consume_jobs(SERVER, room) as consumer:
        batch = aiter(requests())
        await has_settled(queue)
        assert await queue.queue_depth(SERVER) == (3, 0)
        room.free = 2
        consumer.wake()
        assert await anext(batch) == 2
        assert len(await take(consumer, 2)) == 2
        room.free = 0
        consumer.wake()
        await has_settled(queue)

        assert await queue.queue_depth(SERVER) == (1, 2)
        assert consumer.outstanding == 0


@pytest.mark.usefixtures("no_second_look")
async def test_room_that_grows_a_little_is_not_asked_for_job_by_job(queue: Bus) -> None:
    """From a quarter of it on: fewer requests than one for each job."""
    room = Room(8)
    async with asked(queue) as requests, queue.consume_jobs(SERVER, room) as consumer:
        batch = aiter(requests())
        assert await anext(batch) == 8
        room.free = 10
        consumer.wake()
        await has_settled(queue)
        room.free = 12
        consumer.wake()

        assert await anext(batch) == 4
        assert consumer.credit == 12


@pytest.mark.usefixtures("no_second_look")
async def test_a_consumer_that_stops_asking_yields_what_is_on_its_way_and_no_more(queue: Bus) -> None:
    """The begin of a drain."""
    async with queue.consume_jobs(SERVER, Room(2)) as consumer:
        await until(lambda: consumer.credit == 2)
        consumer.stop_asking()
        jobs = await enqueue(queue, 3)
        found = await take(consumer, 2)
        consumer.wake()
        await has_settled(queue)

        assert [delivery.job.id for delivery in found] == [job.id for job in jobs[:2]]
        assert consumer.outstanding == 0
        assert await queue.queue_depth(SERVER) == (1, 2)


async def test_what_a_consumer_that_left_had_asked_for_goes_to_another_at_once(queue: Bus) -> None:
    """The store drops the pulls of an inbox that nobody listens to: the first delivery is the other's."""
    async with queue.consume_jobs(SERVER, Room(5)) as gone:
        await until(lambda: gone.credit == 5)
    async with queue.consume_jobs(SERVER, Room(5)) as consumer:
        await enqueue(queue, 5)
        found = await take(consumer, 5)

    assert [delivery.deliveries for delivery in found] == [1] * 5


async def test_a_pull_that_expires_is_asked_for_again(queue: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store says how much of it is still owed."""
    monkeypatch.setattr(common.consumer, "PULL_EXPIRES_S", 0.3)
    monkeypatch.setattr(common.consumer, "PULL_HEARTBEAT_S", 0.1)
    async with asked(queue) as requests, queue.consume_jobs(SERVER, Room(4)) as consumer:
        batch = aiter(requests())
        assert [await anext(batch) for _ in range(3)] == [4, 4, 4]
        [job] = await enqueue(queue, 1)

        assert [delivery.job.id for delivery in await take(consumer, 1)] == [job.id]
        assert consumer.credit <= 4


async def test_a_queue_that_does_not_exist_yet_is_asked_until_it_does(bus: Bus) -> None:
    """A refused pull gives its credit back, and is repeated after a pause."""
    async with bus.consume_jobs(SERVER, Room(1)) as consumer:
        await until(lambda: consumer.credit == 1)
        await until(lambda: consumer.credit == 0)
        [job] = await enqueue(bus, 1)
        await bus.ensure_server(SERVER, 10)

        assert [delivery.job.id for delivery in await take(consumer, 1)] == [job.id]


async def test_a_consumer_goes_on_when_its_queue_was_made_anew(queue: Bus) -> None:
    """As an operator may do it."""
    async with queue.consume_jobs(SERVER, Room(1)) as consumer:
        await until(lambda: consumer.credit == 1)
        await queue.remove_server(SERVER)
        [job] = await enqueue(queue, 1)
        await queue.ensure_server(SERVER, 10)

        assert [delivery.job.id for delivery in await take(consumer, 1)] == [job.id]


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "restarted"])
async def test_a_consumer_goes_on_after_a_restart_of_the_store(queue: Bus, nats_server: NatsServer, kill: bool) -> None:
    """Every standing pull is lost with the connection, and asked for again; nothing accepted is lost."""
    async with queue.consume_jobs(SERVER, Room(2)) as consumer:
        await until(lambda: consumer.credit == 2)
        [before] = await enqueue(queue, 1)
        [delivery] = await take(consumer, 1)
        await delivery.ack()
        await until_depth(queue, 0, 0)
        await nats_server.stop(kill=kill)
        await nats_server.start()
        async with open_bus(nats_server) as other:
            after = await enqueue(other, 4)
        found = await take(consumer, 2)
        for each in found:
            await each.ack()
        consumer.wake()
        found += await take(consumer, 2)

    assert [delivery.job.id for delivery in found] == [job.id for job in after]
    assert delivery.job.id == before.id


# --- poison ---------------------------------------------------------------------------------------------------


async def store_poison(bus: Bus, job: str | None, payload: bytes = POISON) -> None:
    message_headers = {headers.MSG_ID: job} if job is not None else None
    await bus.client.jetstream().publish(subjects.jobs(SERVER, SESSION), payload, headers=message_headers)


async def dead_letters(bus: Bus) -> list[DeadLetter]:
    js = bus.client.jetstream()
    count = (await js.stream_info(DEAD_LETTERS)).state.messages
    return [DeadLetter.decode((await js.get_msg(DEAD_LETTERS, seq=seq)).data or b"") for seq in range(1, count + 1)]


@pytest.mark.usefixtures("no_second_look")
async def test_an_unreadable_message_is_dead_lettered_its_job_ended_and_the_next_one_comes(queue: Bus) -> None:
    """Though there is room for one only, and the poison had it."""
    await store_poison(queue, "bad")
    [good] = await enqueue(queue, 1)
    async with queue.consume_jobs(SERVER, Room(1)) as consumer:
        [delivery] = await take(consumer, 1)
        await until_depth(queue, 0, 1)
    end = await queue.last_event(SESSION, "bad")
    [letter] = await dead_letters(queue)

    assert delivery.job.id == good.id
    assert (letter.job, letter.payload, letter.deliveries) == ("bad", POISON, 1)
    assert letter.subject == subjects.jobs(SERVER, SESSION)
    assert end is not None
    assert (end.event.type, end.event.attempt, end.event.data["outcome"]) == ("result", 0, "dead_lettered")
    assert end.event.data["error"]["type"] == "undecodable_message"
    assert end.event.data["error"]["message"] == letter.reason


@pytest.mark.parametrize("payload", [b"", b"\x80", b"\x81\x90\x01", b"\x91" * 100_000, b"\x81\xa1v\x02"])
async def test_no_bytes_end_the_consumer(queue: Bus, payload: bytes) -> None:
    """Empty, of another version, nested without end, or a map that no dict can be."""
    await store_poison(queue, "bad", payload)
    [good] = await enqueue(queue, 1)
    async with queue.consume_jobs(SERVER, Room(5)) as consumer:
        [delivery] = await take(consumer, 1)
        await until_depth(queue, 0, 1)

    assert delivery.job.id == good.id
    assert [letter.payload for letter in await dead_letters(queue)] == [payload]


@pytest.mark.parametrize("job", [None, "", "no.token", "x" * 65])
async def test_an_unreadable_message_of_nobody_knows_which_job_is_kept_and_dropped(queue: Bus, job: str | None) -> None:
    """No event is made up for it: what is no token cannot stand in a subject."""
    await store_poison(queue, job)
    [good] = await enqueue(queue, 1)
    async with queue.consume_jobs(SERVER, Room(5)) as consumer:
        await take(consumer, 1)
        await until_depth(queue, 0, 1)
    stored = [found.event.job async for found in queue.replay_session(SESSION, 0)]

    assert [letter.job for letter in await dead_letters(queue)] == [job or ""]
    assert stored == [good.id]


async def test_an_unreadable_message_of_a_job_that_had_started_ends_it_behind_its_last_event(queue: Bus) -> None:
    """The attempt stays the one that it was."""
    started = await queue.publish_event(make_event("bad", "started", attempt=2), expected=0)
    await store_poison(queue, "bad")
    async with queue.consume_jobs(SERVER, Room(1)) as consumer:
        reading = asyncio.ensure_future(anext(aiter(consumer)))
        await until_depth(queue, 0, 0)
        reading.cancel()
        await asyncio.wait({reading})
    end = await queue.last_event(SESSION, "bad")

    assert end is not None
    assert (end.seq, end.event.attempt) == (started + 1, 2)


async def test_an_unreadable_message_of_a_job_that_has_ended_is_only_dropped(queue: Bus) -> None:
    """There is exactly one terminal event."""
    seq = await queue.publish_event(make_event("bad", "result", outcome="succeeded"), expected=0)
    await store_poison(queue, "bad")
    async with queue.consume_jobs(SERVER, Room(1)) as consumer:
        reading = asyncio.ensure_future(anext(aiter(consumer)))
        await until_depth(queue, 0, 0)
        reading.cancel()
        await asyncio.wait({reading})
    end = await queue.last_event(SESSION, "bad")

    assert end is not None
    assert (end.seq, end.event.data["outcome"]) == (seq, "succeeded")
    assert len(await dead_letters(queue)) == 1
