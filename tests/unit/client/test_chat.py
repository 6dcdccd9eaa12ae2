"""Turns and their calls as a caller sees them, against a gateway double."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from client import Event, Refused, Session, connect
from tests.unit.client.gateway_double import SESSION, GatewayDouble, Store, run_gateway

DEADLINE_S = 10.0
CALL = {"job": "call1", "server": "time", "tool": "now", "arguments": {"zone": "UTC"}}
USED = {"input_tokens": 1, "output_tokens": 1}


@pytest.fixture
async def store() -> Store:
    return Store()


@pytest.fixture
async def gateway(store: Store) -> AsyncIterator[GatewayDouble]:
    async with run_gateway(store) as double:
        double.hold.add("chat/send")
        yield double


@pytest.fixture
async def session(gateway: GatewayDouble) -> AsyncIterator[Session]:
    async with asyncio.timeout(DEADLINE_S), connect(gateway.url) as opened:
        yield opened


async def read(session: Session, content: str = "hello") -> list[Event]:
    async with aclosing(session.chat(content)) as events:
        return [event async for event in events]


async def play(store: Store) -> None:
    """What a turn with one call tells."""
    await store.emit("turn1", "started", worker="w", model="m")
    await store.emit("turn1", "output", stream="text", text="I look.")
    await store.emit("turn1", "step", step=1, calls=[CALL], usage=USED)
    await store.emit("other", "queued", server="git", tool="log")
    await store.emit("call1", "queued", server="time", tool="now")
    await store.emit("call1", "result", outcome="succeeded")
    await store.emit("other", "result", outcome="succeeded")
    await store.emit("turn1", "result", outcome="succeeded")


SEEN = [
    ("turn1", "queued"),
    ("turn1", "started"),
    ("turn1", "output"),
    ("turn1", "step"),
    ("call1", "queued"),
    ("call1", "result"),
    ("turn1", "result"),
]


def seen(events: list[Event]) -> list[tuple[str, str]]:
    return [(event.job, event.type) for event in events]


async def test_a_turn_yields_its_events_and_those_of_its_calls(
    session: Session, gateway: GatewayDouble, store: Store
) -> None:
    """Whatever came before the answer to its request; other jobs of the session are not its own."""
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(read(session))
        request = await gateway.held.get()
        queued = await store.emit("turn1", "queued", server="chat", tool="send")
        await play(store)
        await request.answer(job="turn1", seq=queued["seq"])

    assert seen(reading.result()) == SEEN
    assert (request.params["session"], request.params["content"]) == (SESSION, "hello")


async def test_a_turn_goes_on_over_another_connection(session: Session, gateway: GatewayDouble, store: Store) -> None:
    """What was missed meanwhile comes first, each event once."""
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(read(session))
        request = await gateway.held.get()
        queued = await store.emit("turn1", "queued", server="chat", tool="send")
        await request.answer(job="turn1", seq=queued["seq"])
        gateway.drop()
        await play(store)

    assert seen(reading.result()) == SEEN


async def test_a_turn_whose_answer_was_lost_is_sent_again_under_the_same_key(
    session: Session, gateway: GatewayDouble, store: Store
) -> None:
    """So it is one turn, and nothing of it is missed."""
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(read(session))
        first = await gateway.held.get()
        queued = await store.emit("turn1", "queued", server="chat", tool="send")
        gateway.drop()
        again = await gateway.held.get()
        await again.answer(job="turn1", seq=queued["seq"])
        await play(store)

    assert seen(reading.result()) == SEEN
    assert first.params["idempotencyKey"] == again.params["idempotencyKey"]


async def test_a_turn_that_ended_long_ago_is_read_from_the_store(
    gateway: GatewayDouble, session: Session, store: Store
) -> None:
    """Its key stands for it; and so does its id."""
    queued = await store.emit("turn1", "queued", server="chat", tool="send")
    await play(store)
    async with asyncio.timeout(DEADLINE_S), connect(gateway.url, session=SESSION) as later:
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(read(later))
            await (await gateway.held.get()).answer(job="turn1", seq=queued["seq"])
        async with aclosing(later.follow_turn("turn1")) as events:
            followed = [event async for event in events]

    assert seen(reading.result()) == SEEN
    assert seen(followed) == SEEN


async def test_the_end_of_a_turn_that_the_store_has_dropped_is_asked_for(
    session: Session, gateway: GatewayDouble, store: Store
) -> None:
    """A turn ends for its reader also where its last event can no longer be replayed."""
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(read(session))
        request = await gateway.held.get()
        queued = await store.emit("turn1", "queued", server="chat", tool="send")
        known = {"job": "turn1", "state": "result", "attempt": 1, "seq": 999, "server": "chat", "tool": "send"}
        gateway.answers["job/get"] = known | {"outcome": "succeeded"}
        await request.answer(job="turn1", seq=queued["seq"])
        store.restart("e2")
        gateway.drop()

    assert seen(reading.result())[-1] == ("turn1", "result")


async def test_a_turn_in_progress_is_a_refusal_that_names_it(session: Session, gateway: GatewayDouble) -> None:
    """Its job can be followed."""
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(_refused(session))
        await (await gateway.held.get()).refuse(409, "turn_in_progress", "one turn at a time", job="turn0")

    assert reading.result().data["job"] == "turn0"


async def _refused(session: Session) -> Refused:
    with pytest.raises(Refused) as caught:
        await read(session)
    return caught.value


async def test_calls_are_approved_and_denied_by_their_job(session: Session, gateway: GatewayDouble) -> None:
    """As the gateway asks for it."""
    gateway.hold |= {"chat/approve", "chat/deny"}
    async with asyncio.TaskGroup() as group:
        group.create_task(session.approve("call1"))
        approve = await gateway.held.get()
        await approve.answer(job="call1", approved=True)
        group.create_task(session.deny("call2"))
        deny = await gateway.held.get()
        await deny.answer(job="call2", approved=False)

    assert (approve.method, approve.params) == ("chat/approve", {"session": SESSION, "job": "call1"})
    assert (deny.method, deny.params) == ("chat/deny", {"session": SESSION, "job": "call2"})


async def test_a_new_session_says_what_it_allows(gateway: GatewayDouble) -> None:
    """One that is joined has said it, and so does a connection that comes back."""
    async with asyncio.timeout(DEADLINE_S), connect(gateway.url, allow=["time", "git/log"]):
        pass
    async with asyncio.timeout(DEADLINE_S), connect(gateway.url, allow=[]):
        pass
    async with asyncio.timeout(DEADLINE_S), connect(gateway.url):
        pass

    assert gateway.opens == [{"allow": ["time", "git/log"]}, {"allow": []}, {}]
