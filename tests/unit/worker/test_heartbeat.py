"""Deliveries in hand are told to the store to be so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from nats.aio.msg import Msg

from common.bus import Bus
from common.consumer import Delivery
from tests.nats_server import NatsServer
from tests.unit.common.bus_rig import DEADLINE_S, SERVER, flushed, make_job, open_bus
from worker.heartbeat import Heartbeat


@pytest.fixture
async def deliveries(bus: Bus) -> AsyncIterator[list[Delivery]]:
    """Three jobs as the store delivered them."""
    await bus.ensure_server(SERVER, 10)
    for _ in range(3):
        await bus.enqueue_job(make_job())
    async with bus.consume_jobs(SERVER, lambda: 3) as consumer:
        iterator = aiter(consumer)
        async with asyncio.timeout(DEADLINE_S):
            yield [await anext(iterator) for _ in range(3)]


@asynccontextmanager
async def verdicts(bus: Bus) -> AsyncIterator[asyncio.Queue[tuple[str, bytes]]]:
    """Every verdict on a delivery that reaches the store, with the delivery's ack subject."""
    seen: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()

    async def note(msg: Msg) -> None:
        seen.put_nowait((msg.subject, msg.data))

    subscription = await bus.client.subscribe("$JS.ACK.>", cb=note)
    await flushed(bus)
    yield seen
    await subscription.unsubscribe()


@asynccontextmanager
async def beating(heartbeat: Heartbeat) -> AsyncIterator[None]:
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(heartbeat.run())
        yield
        running.cancel()


async def test_every_delivery_that_is_held_is_told_to_be_in_hand(bus: Bus, deliveries: list[Delivery]) -> None:
    """Again and again, three times within ack_wait."""
    heartbeat = Heartbeat(0.15)
    async with verdicts(bus) as seen, beating(heartbeat):
        for delivery in deliveries[:2]:
            heartbeat.hold(delivery)
        begun = asyncio.get_running_loop().time()
        told = [await seen.get() for _ in range(6)]
        took_s = asyncio.get_running_loop().time() - begun

    assert told == [(delivery.ack_subject, b"+WPI") for delivery in deliveries[:2]] * 3
    assert took_s >= 0.1  # not all at once


async def test_a_delivery_that_was_dropped_is_told_no_more(bus: Bus, deliveries: list[Delivery]) -> None:
    """It is settled, or another's; dropping it twice is no error."""
    heartbeat = Heartbeat(0.03)
    kept, dropped, _ = deliveries
    async with verdicts(bus) as seen:
        heartbeat.hold(kept)
        heartbeat.hold(dropped)
        heartbeat.drop(dropped.job.id)
        heartbeat.drop(dropped.job.id)
        async with beating(heartbeat):
            told = [await seen.get() for _ in range(4)]

    assert told == [(kept.ack_subject, b"+WPI")] * 4
    assert heartbeat.current(dropped.job.id) is None


async def test_a_later_delivery_of_a_job_takes_the_place_of_the_earlier(bus: Bus, deliveries: list[Delivery]) -> None:
    """Whose ack subject means nothing to the store any more."""
    heartbeat = Heartbeat(0.03)
    earlier, other, _ = deliveries
    later = Delivery(
        client=other.client,
        job=earlier.job,
        payload=earlier.payload,
        ack_subject=other.ack_subject,
        stream_seq=earlier.stream_seq,
        deliveries=2,
    )
    heartbeat.hold(earlier)
    heartbeat.hold(later)
    async with verdicts(bus) as seen, beating(heartbeat):
        told = [await seen.get() for _ in range(2)]

    assert heartbeat.current(earlier.job.id) is later
    assert told == [(later.ack_subject, b"+WPI")] * 2


async def test_a_delivery_that_is_handed_back_is_held_no_more(bus: Bus, deliveries: list[Delivery]) -> None:
    """The store delivers it again, to whoever has room."""
    heartbeat = Heartbeat(0.03)
    kept, handed_back, _ = deliveries
    heartbeat.hold(kept)
    heartbeat.hold(handed_back)
    async with verdicts(bus) as seen:
        await heartbeat.hand_back(handed_back)
        async with beating(heartbeat):
            told = [await seen.get() for _ in range(3)]

    assert told == [(handed_back.ack_subject, b"-NAK"), *[(kept.ack_subject, b"+WPI")] * 2]


async def test_a_job_that_is_held_is_not_delivered_again(nats_server: NatsServer) -> None:
    """For however many times ack_wait; one that is not held is."""
    async with open_bus(nats_server, ack_wait_s=1) as bus:
        await bus.ensure_server(SERVER, 10)
        held, lost = make_job(), make_job()
        for job in (held, lost):
            await bus.enqueue_job(job)
        heartbeat = Heartbeat(bus.ack_wait_s)
        async with bus.consume_jobs(SERVER, lambda: 10) as consumer, beating(heartbeat):
            iterator = aiter(consumer)
            heartbeat.hold(await anext(iterator))
            again = [(await anext(iterator)).job.id for _ in range(3)]

    assert again == [lost.id] * 3
