"""Sessions: events in order, resumed on any gateway, closed for good."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from common import subjects
from common.streams import SESSIONS, SESSIONS_BUCKET
from tests.gateway_rig import GatewayRig, RunningGateway, gateway_rig
from tests.nats_server import NatsServer
from tests.settled import settled


@pytest.fixture
async def rig(nats_server: NatsServer) -> AsyncIterator[GatewayRig]:
    async with gateway_rig(nats_server.url) as rig:
        await rig.add_server()
        yield rig


@pytest.fixture
async def gateway(rig: GatewayRig) -> RunningGateway:
    return await rig.start_gateway()


async def test_a_new_session_starts_from_now(rig: GatewayRig, gateway: RunningGateway) -> None:
    """Its position is the newest event of all sessions, so that a resume never reads from the stream's start."""
    await rig.add_output("another", 3)
    async with gateway.socket() as socket:
        opened = await socket.call("session/open")

    assert opened["seq"] == 3
    assert opened["epoch"] == rig.bus.epoch
    assert opened["recovered"] is False


async def test_events_of_a_joined_session_arrive_in_order_as_they_were_stored(
    rig: GatewayRig, gateway: RunningGateway
) -> None:
    """Each notification is one stored event with its number; other sessions' are not seen."""
    async with gateway.socket() as socket:
        session = await socket.open()
        job = subjects.new_job_id()
        await rig.add_output("another", 1)
        seqs = [
            await rig.start_job(session, job),
            await rig.add_event(session, job, "output", stream="stdout", text="häßlich"),
            await rig.end_job(session, job, result={"content": []}),
        ]
        events = await socket.events(3)

    assert [event["seq"] for event in events] == seqs
    assert [event["type"] for event in events] == ["started", "output", "result"]
    assert {(event["session"], event["job"], event["attempt"]) for event in events} == {(session, job, 1)}
    assert events[1]["data"] == {"stream": "stdout", "text": "häßlich"}


async def test_an_event_that_json_cannot_say_is_sent_with_what_it_can(rig: GatewayRig, gateway: RunningGateway) -> None:
    """Such an event is stored and would be met at every replay: it must not end the connection."""
    async with gateway.socket() as socket:
        session = await socket.open()
        await rig.end_job(session, "j", result={"structuredContent": {"nan": float("nan"), "raw": b"\x00\xff"}})
        event = await socket.event()

    assert event["data"]["result"]["structuredContent"] == {"nan": None, "raw": "AP8="}


async def test_a_client_that_comes_back_on_another_gateway_gets_what_it_missed(
    rig: GatewayRig, gateway: RunningGateway
) -> None:
    """With its epoch and last number it is recovered: the missed events first, then new ones, none twice."""
    other = await rig.start_gateway()
    async with gateway.socket() as socket:
        opened = await socket.call("session/open")
        session = opened["session"]
        await rig.add_output(session, 3)
        seen = (await socket.events(3))[0]["seq"]
    missed = await rig.add_output(session, 300)
    async with other.socket() as socket:
        joined = await socket.call("session/open", session=session, epoch=opened["epoch"], seq=seen)
        new = await rig.add_output(session, 2)
        events = await socket.events(2 + 300 + 2)

    assert joined == {"session": session, "epoch": opened["epoch"], "seq": seen, "recovered": True}
    assert [event["seq"] for event in events] == [seen + 1, seen + 2, *missed, *new]


async def test_a_position_of_another_epoch_is_not_recovered(rig: GatewayRig, gateway: RunningGateway) -> None:
    """Its numbers mean nothing here: events start with what the store has."""
    async with gateway.socket() as socket:
        session = await socket.open()
        seqs = await rig.add_output(session, 2)
        joined = await socket.call("session/open", session=session, epoch="another", seq=seqs[1])
        # Those that the first session/open forwarded may have come before.
        events = [await socket.event()]
        while events[-1]["seq"] != seqs[1] or len(events) < 2:
            events.append(await socket.event())

    assert joined["recovered"] is False
    assert joined["epoch"] == rig.bus.epoch
    assert [event["seq"] for event in events][-2:] == seqs


async def test_a_position_behind_what_the_store_still_has_is_not_recovered(
    nats_server: NatsServer, rig: GatewayRig, gateway: RunningGateway
) -> None:
    """Where the oldest events are gone the client is told, and gets those that are left."""
    async with gateway.socket() as socket:
        opened = await socket.call("session/open")
    session = opened["session"]
    seqs = await rig.add_output(session, 5)
    await rig.bus.client.jetstream().purge_stream(SESSIONS, seq=seqs[3])
    async with gateway.socket() as socket:
        lost = await socket.call("session/open", session=session, epoch=opened["epoch"], seq=seqs[0])
        rest = await socket.events(2)
    async with gateway.socket() as socket:
        kept = await socket.call("session/open", session=session, epoch=opened["epoch"], seq=seqs[2])

    assert lost["recovered"] is False
    assert [event["seq"] for event in rest] == seqs[3:]
    assert kept["recovered"] is True


async def test_a_position_ahead_of_the_store_is_not_recovered(gateway: RunningGateway) -> None:
    """The store has lost what the client has seen."""
    async with gateway.socket() as socket:
        opened = await socket.call("session/open")
        joined = await socket.call(
            "session/open", **{k: opened[k] for k in ("session", "epoch")}, seq=opened["seq"] + 1
        )

    assert joined["recovered"] is False


async def test_joining_again_on_the_same_socket_starts_over_from_the_given_number(
    rig: GatewayRig, gateway: RunningGateway
) -> None:
    """After the second answer come the events after that number, each once."""
    async with gateway.socket() as socket:
        opened = await socket.call("session/open")
        session = opened["session"]
        seqs = await rig.add_output(session, 3)
        first = await socket.events(3)
        joined = await socket.call("session/open", session=session, epoch=opened["epoch"], seq=seqs[0])
        seqs += await rig.add_output(session, 1)
        again = await socket.events(3)

    assert joined["recovered"] is True
    assert [event["seq"] for event in first + again] == [*seqs[:3], *seqs[1:]]


async def test_a_client_that_reads_slowly_gets_every_event(rig: GatewayRig, gateway: RunningGateway) -> None:
    """What does not fit into the buffers on the way is read back from the store: in order, none lost, none twice."""
    async with gateway.socket(max_queue=1) as socket:
        session = await socket.open()
        seqs = await rig.add_output(session, 1_500, text="x" * 16_000)  # 24 MB, and nobody reads
        events = await socket.events(len(seqs))

    assert [event["seq"] for event in events] == seqs


async def test_clients_that_leave_in_the_middle_of_opening_leave_nothing_behind(
    rig: GatewayRig, gateway: RunningGateway
) -> None:
    """Their connections end, and others' events and requests go on."""
    async with gateway.socket() as steady:
        session = await steady.open()
        for _ in range(50):
            async with gateway.connect() as hasty:
                for number in range(5):
                    await hasty.send(f'{{"jsonrpc": "2.0", "id": {number}, "method": "session/open"}}')
                hasty.transport.abort()
        seqs = await rig.add_output(session, 3)
        events = await steady.events(3)
        async with asyncio.timeout(5):
            while (await steady.call("status/get"))["gateway"]["connections"] > 1:
                continue

    assert [event["seq"] for event in events] == seqs


async def test_closing_a_session_cancels_its_jobs_and_forgets_it(rig: GatewayRig, gateway: RunningGateway) -> None:
    """Queued jobs end at once, running ones are cancelled, workers are told, and the id means nothing any more."""
    heard: asyncio.Queue[str] = asyncio.Queue()

    async def hear(message: object) -> None:
        heard.put_nowait(message.subject)  # type: ignore[attr-defined]

    for pattern in (subjects.ALL_LIVE_CANCELS, subjects.ALL_CLOSES):
        await rig.bus.client.subscribe(pattern, cb=hear)
    await settled(rig.bus)
    async with gateway.socket() as socket:
        session = await socket.open()
        call = {"session": session, "server": "math", "name": "add", "arguments": {"a": 1, "b": 2}}
        queued, started, ended = [(await socket.call("tools/call", **call))["job"] for _ in range(3)]
        await rig.start_job(session, started)
        await rig.start_job(session, ended)
        await rig.end_job(session, ended)

        closed = await socket.call("session/close", session=session)
        again = await socket.refused("session/close", session=session)
        called = await socket.refused("tools/call", **call)

    async with asyncio.timeout(5):
        told = [await heard.get(), await heard.get()]
    end = await rig.bus.last_event(session, queued)
    assert closed["session"] == session
    assert closed["cancelled"] == [queued, started]
    assert end is not None
    assert end.event.data == {"outcome": "cancelled"}
    assert told == [f"live.{session}.{started}.cancel", subjects.close(session)]
    assert again["data"]["type"] == called["data"]["type"] == "unknown_session"


async def test_a_session_that_nobody_uses_lapses_and_one_in_use_does_not(nats_server: NatsServer) -> None:
    """Opening, joining and calling keep it known for another session_ttl_s; lapsed it is as if it never was."""
    async with gateway_rig(nats_server.url, session_ttl_s=1) as rig:
        gateway = await rig.start_gateway()
        async with gateway.socket() as socket:
            used, unused = await socket.open(), await socket.open()
            async with asyncio.timeout(10):
                while (await rig.bus.get(SESSIONS_BUCKET, unused)).value is not None:
                    assert (await socket.refused("job/get", session=used, job="j"))["data"]["type"] == "unknown_job"
            lapsed = await socket.refused("session/open", session=unused)
            in_use = await socket.request("session/open", session=used)

    assert lapsed["data"]["type"] == "unknown_session"
    assert "result" in in_use


async def test_a_session_closed_on_another_gateway_is_soon_unknown_here(
    rig: GatewayRig, gateway: RunningGateway
) -> None:
    """Not at once: a busy session is looked up once a second."""
    other = await rig.start_gateway()
    async with gateway.socket() as here, other.socket() as there:
        session = await here.open()
        await here.refused("job/get", session=session, job="j")
        await there.call("session/close", session=session)
        async with asyncio.timeout(5):
            while (await here.refused("job/get", session=session, job="j"))["data"]["type"] != "unknown_session":
                continue
