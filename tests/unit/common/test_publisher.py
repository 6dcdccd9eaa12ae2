"""Acknowledged publishes, many at once."""

from __future__ import annotations

import asyncio

import nats.js.errors
import pytest

import common.publisher
from common import headers, subjects
from common.bus import Bus
from common.publisher import Publisher
from common.streams import SESSIONS
from tests.nats_server import NatsServer
from tests.unit.common.bus_rig import DEADLINE_S, SESSION, store_paused

SUBJECT = subjects.event(SESSION, "j1")


@pytest.fixture
async def publisher(bus: Bus) -> Publisher:
    opened = Publisher(bus.client)
    await opened.open()
    return opened


async def test_what_is_sent_in_turn_is_stored_in_turn(bus: Bus, publisher: Publisher) -> None:
    """Without a wait for the one before; each acknowledgement has its own number, in whatever order they are asked."""
    sent = [await publisher.send(SUBJECT, str(number).encode(), {}) for number in range(200)]
    numbers = [await each.seq() for each in reversed(sent)]
    js = bus.client.jetstream()

    assert numbers == list(range(200, 0, -1))
    assert [(await js.get_msg(SESSIONS, seq=seq)).data for seq in (1, 200)] == [b"0", b"199"]


async def test_a_refusal_is_told_with_the_stores_code(publisher: Publisher) -> None:
    """And is no other publish's."""
    good = await publisher.send(SUBJECT, b"1", {headers.EXPECTED_LAST_SUBJECT_SEQUENCE: "0"})
    bad = await publisher.send(SUBJECT, b"2", {headers.EXPECTED_LAST_SUBJECT_SEQUENCE: "0"})
    with pytest.raises(nats.js.errors.APIError) as refused:
        await bad.seq()

    assert refused.value.err_code == 10071
    assert await good.seq() == 1


async def test_a_subject_that_no_stream_takes_is_refused_at_once(publisher: Publisher) -> None:
    """Nobody answers: the stream was removed, or has no leader."""
    sent = await publisher.send("nowhere", b"", {})
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(nats.js.errors.NoStreamResponseError):
            await sent.seq()


async def test_a_store_that_does_not_answer_is_given_up(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message may have been stored; its late answer is nobody's."""
    monkeypatch.setattr(common.publisher, "ACK_TIMEOUT_S", 0.1)
    with store_paused():
        sent = await publisher.send(SUBJECT, b"", {})
        with pytest.raises(TimeoutError):
            await sent.seq()
    monkeypatch.undo()

    assert await (await publisher.send(SUBJECT, b"", {})).seq() == 2


async def test_publishing_goes_on_after_a_restart_of_the_store(
    bus: Bus, publisher: Publisher, nats_server: NatsServer
) -> None:
    """What is sent while it is away is sent when it is back."""
    assert await (await publisher.send(SUBJECT, b"", {})).seq() == 1
    await nats_server.stop(kill=True)
    sent = await publisher.send(SUBJECT, b"", {})
    await nats_server.start()
    async with asyncio.timeout(DEADLINE_S):
        while not bus.connected:
            await asyncio.sleep(0.005)
        after = await (await publisher.send(SUBJECT, b"", {})).seq()

    assert after in (2, 3)
    assert sent is not None
