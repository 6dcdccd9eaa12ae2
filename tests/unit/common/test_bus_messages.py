"""Core messages, the connection itself, and a store that is away."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable

import pytest
from nats.aio.msg import Msg

from common import subjects
from common.bus import Bus
from common.dead_letters import GivenUp
from common.errors import Fenced, StoreUnavailable
from common.streams import LEASES_BUCKET
from tests.nats_server import NatsServer
from tests.unit.common.bus_rig import (
    DEADLINE_S,
    SERVER,
    SESSION,
    be_impatient,
    flushed,
    make_event,
    make_job,
    open_bus,
    store_paused,
    until,
)

SUBJECT = subjects.handoff("w-1")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    be_impatient(monkeypatch, 0.3)


async def say_nothing(msg: Msg) -> None:
    """What a listener does that is stuck."""


# --- asking ---------------------------------------------------------------------------------------------------


async def test_a_request_that_nobody_listens_to_is_answered_at_once_by_none(bus: Bus) -> None:
    """The holder of a lease is known to be gone without waiting for it."""
    async with asyncio.timeout(DEADLINE_S):
        assert await bus.request(SUBJECT, b"", timeout_s=3600) is None


async def test_a_request_brings_headers_there_and_the_answer_back(bus: Bus, nats_server: NatsServer) -> None:
    """An empty answer is an answer."""
    asked: list[tuple[bytes, dict[str, str] | None]] = []

    async def answer(msg: Msg) -> None:
        asked.append((msg.data, msg.headers))
        await msg.respond(b"" if msg.data == b"empty" else b"taken")

    async with open_bus(nats_server) as other:
        await other.client.subscribe(SUBJECT, cb=answer)
        await flushed(other)
        answers = [await bus.request(SUBJECT, each, DEADLINE_S, {"A": "1"}) for each in (b"job", b"empty")]

    assert answers == [b"taken", b""]
    assert asked == [(b"job", {"A": "1"}), (b"empty", {"A": "1"})]


async def test_a_listener_that_does_not_answer_in_time_is_an_unavailable_store(bus: Bus) -> None:
    """It may have acted on the request: that is not the same as nobody."""
    await bus.client.subscribe(SUBJECT, cb=say_nothing)
    await flushed(bus)
    with pytest.raises(StoreUnavailable, match=r"asking workers\.w-1\.handoff"):
        await bus.request(SUBJECT, b"", timeout_s=0.05)


async def test_all_who_answer_in_time_are_gathered(bus: Bus, nats_server: NatsServer) -> None:
    """However many there are; whoever says nothing is not waited for longer."""

    def answering(number: int) -> Callable[[Msg], Awaitable[None]]:
        async def answer(msg: Msg) -> None:
            await msg.respond(json.dumps({"worker": number}).encode())

        return answer

    async with open_bus(nats_server) as other:
        for number in range(3):
            await other.client.subscribe(SUBJECT, cb=answering(number))
        await other.client.subscribe(SUBJECT, cb=say_nothing)
        await flushed(other)
        answers = await bus.gather(SUBJECT, 1.0)

    assert sorted(answer["worker"] for answer in answers) == [0, 1, 2]


async def test_where_nobody_listens_gathering_ends_at_once(bus: Bus) -> None:
    """With nothing."""
    async with asyncio.timeout(DEADLINE_S):
        assert await bus.gather(SUBJECT, 3600) == []


# --- the connection -----------------------------------------------------------------------------------------


async def test_connecting_waits_for_a_store_that_comes_later(nats_server: NatsServer) -> None:
    """Services may be started in any order."""
    await nats_server.stop()
    connected = asyncio.Event()
    leave = asyncio.Event()

    async def connecting() -> None:
        async with open_bus(nats_server) as bus:
            assert bus.connected
            connected.set()
            await leave.wait()

    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(connecting())
        await asyncio.sleep(0)
        assert not connected.is_set()
        await nats_server.start()
        await connected.wait()
        leave.set()


async def test_connecting_can_be_given_up(nats_server: NatsServer) -> None:
    """SIGTERM while NATS is away must not wait for it."""
    await nats_server.stop()

    async def connecting() -> None:
        async with open_bus(nats_server):
            raise AssertionError("there is nothing to connect to")

    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(connecting())
        for _ in range(20):
            await asyncio.sleep(0)  # into the attempt
        task.cancel()
    assert task.cancelled()


async def test_what_was_published_is_flushed_on_leaving(bus: Bus, nats_server: NatsServer) -> None:
    """The last cancel of a gateway that goes reaches the workers."""
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def listen(msg: Msg) -> None:
        heard.put_nowait(msg.data)

    await bus.client.subscribe(SUBJECT, cb=listen)
    await flushed(bus)
    async with open_bus(nats_server) as other:
        for number in range(100):
            await other.publish(SUBJECT, str(number).encode())

    async with asyncio.timeout(DEADLINE_S):
        assert [await heard.get() for _ in range(100)] == [str(number).encode() for number in range(100)]


async def test_the_connection_says_whether_it_stands(bus: Bus, nats_server: NatsServer) -> None:
    """And comes back by itself, to the same limits."""
    limit = bus.max_payload
    assert (bus.connected, limit) == (True, 8 * 1024 * 1024)
    await nats_server.stop(kill=True)
    await until(lambda: not bus.connected)
    await nats_server.start()
    await until(lambda: bus.connected)
    assert bus.max_payload == limit


@pytest.mark.parametrize("call", ["oldest_job_seq", "get", "queue_depth", "last_event", "publish_event", "request"])
async def test_a_cancellation_that_comes_with_the_answer_is_not_lost(bus: Bus, call: str) -> None:
    """CPython 3.11's `wait_for`, by which nats-py waits, loses it: whoever waits for the task's end would hang."""
    heard = asyncio.Event()
    never = asyncio.Event()

    async def hear(msg: Msg) -> None:
        heard.set()

    async def ask() -> None:
        with contextlib.suppress(Fenced):
            await everything(bus)[call]()
        await never.wait()

    await bus.client.subscribe("heard", cb=hear)
    await bus.bucket(LEASES_BUCKET)
    await flushed(bus)
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        for number in range(60):
            heard.clear()
            asking = tasks.create_task(ask())
            await asyncio.sleep(0)
            await bus.publish("heard")
            await heard.wait()
            for _ in range(number % 6):
                await asyncio.sleep(0)
            asking.cancel()


# --- a store that is away -------------------------------------------------------------------------------------


def everything(bus: Bus) -> dict[str, Callable[[], Awaitable[object]]]:
    given_up = GivenUp(subjects.jobs(SERVER, SESSION), b"", {"message": "r"}, 1, "j1")

    async def replay() -> list[object]:
        return [stored async for stored in bus.replay_session(SESSION, 0)]

    return {
        "ensure": bus.ensure,
        "ensure_server": lambda: bus.ensure_server(SERVER, 1),
        "remove_server": lambda: bus.remove_server(SERVER),
        "enqueue_job": lambda: bus.enqueue_job(make_job()),
        "dead_letter": lambda: bus.dead_letter(given_up),
        "letter": lambda: bus.letter(1),
        "letters": lambda: bus.letters(lambda stored: stored, limit=1),
        "letters_identity": bus.letters_identity,
        "delete_letter": lambda: bus.delete_letter(1),
        "withdraw_job": lambda: bus.withdraw_job(SERVER, SESSION, "j1"),
        "unfinished_jobs": lambda: bus.unfinished_jobs(SESSION),
        "oldest_job_seq": lambda: bus.oldest_job_seq(SERVER, SESSION),
        "oldest_job_age_s": lambda: bus.oldest_job_age_s(SERVER),
        "count_jobs": lambda: bus.count_jobs(SESSION),
        "queue_front": lambda: bus.queue_front(SERVER),
        "jobs_behind": lambda: bus.jobs_behind(SERVER, "j1", 1),
        "queue_depth": lambda: bus.queue_depth(SERVER),
        "publish_event": lambda: bus.publish_event(make_event(), expected=0),
        "last_event": lambda: bus.last_event(SESSION, "j1"),
        "queued_event": lambda: bus.queued_event(SESSION, "j1"),
        "replay_session": replay,
        "stored_range": bus.stored_range,
        "get": lambda: bus.get(LEASES_BUCKET, "a"),
        "put": lambda: bus.put(LEASES_BUCKET, "a", b""),
        "replace": lambda: bus.replace(LEASES_BUCKET, "a", b"", 0),
        "delete": lambda: bus.delete(LEASES_BUCKET, "a"),
        "purge": lambda: bus.purge(LEASES_BUCKET, "a", 60),
        "watch": lambda: anext(bus.watch(LEASES_BUCKET)),
        "request": lambda: bus.request(SUBJECT, b"", 0.3),
    }


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("away", ["stopped", "silent"])
async def test_a_store_that_does_not_answer_is_one_error_of_ours_from_every_call(
    nats_server: NatsServer, away: str
) -> None:
    """No exception of nats-py gets out, whether the store is gone or only says nothing."""
    async with open_bus(nats_server) as bus:
        if away == "stopped":
            await nats_server.stop(kill=True)
            refusals = await _refusals(bus)
        else:
            with store_paused():
                refusals = await _refusals(bus)

    assert refusals == dict.fromkeys(everything(bus), "StoreUnavailable")


async def _refusals(bus: Bus) -> dict[str, str]:
    calls = everything(bus)
    async with asyncio.timeout(DEADLINE_S):
        results = await asyncio.gather(*(call() for call in calls.values()), return_exceptions=True)
    return {name: type(result).__name__ for name, result in zip(calls, results, strict=True)}
