"""Output that stands in the object store, as a client gets it: the bytes in the place of the chunk's number."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any

import msgpack
import pytest

from common.bus import Bus
from common.schema import Event, now_ms
from tests.gateway_rig import DEADLINE_S, GatewayRig, RunningGateway, Socket, gateway_rig
from tests.nats_server import NatsServer

JOB = "j1"


@pytest.fixture
async def rig(nats_server: NatsServer) -> AsyncIterator[GatewayRig]:
    async with gateway_rig(nats_server.url) as rig:
        yield rig


@pytest.fixture
async def gateway(rig: GatewayRig) -> RunningGateway:
    return await rig.start_gateway()


@pytest.fixture
async def socket(gateway: RunningGateway) -> AsyncIterator[Socket]:
    async with gateway.socket() as socket:
        yield socket


async def spill(bus: Bus, session: str, pieces: list[bytes], stream: str = "stdout", after: int = 0) -> int:
    """What a worker stores of a stream beyond its threshold, behind event `after`; the number of the last event."""
    writer = bus.write_object(f"{session}.{JOB}-{stream}")
    named = []
    for piece in pieces:
        chunk = await writer.put(piece)
        seq = await writer.settle(chunk)
        data = {"stream": stream, "offset": chunk.offset, "size": len(piece), "object": writer.object_id, "chunk": seq}
        named.append(output(session, data))
    for at in range(0, len(named), 100):
        after = await bus.publish_events(named[at : at + 100], expected=after, msg_id=f"{stream}.{at}")
    return after


def output(session: str, data: dict[str, Any]) -> Event:
    return Event(job=JOB, session=session, attempt=1, type="output", time_ms=now_ms(), data=data)


async def test_a_client_gets_the_bytes_and_no_word_of_where_they_were(rig: GatewayRig, socket: Socket) -> None:
    """Text as text, other bytes as base64 under JSON; offsets as they were told."""
    session = await socket.open()
    await spill(rig.bus, session, [b"one\n", "zwö\n".encode(), b"\xff\x00"])
    told = [event["data"] for event in await socket.events(3)]

    assert told == [
        {"stream": "stdout", "offset": 0, "text": "one\n"},
        {"stream": "stdout", "offset": 4, "text": "zwö\n"},
        {"stream": "stdout", "offset": 9, "data": base64.b64encode(b"\xff\x00").decode()},
    ]


async def test_bytes_stay_bytes_under_msgpack(rig: GatewayRig, gateway: RunningGateway) -> None:
    """A third smaller, and nothing to decode."""
    async with gateway.connect(subprotocols=["mcp.msgpack"]) as connection, asyncio.timeout(DEADLINE_S):
        request = {"jsonrpc": "2.0", "id": 1, "method": "session/open", "params": {}}
        await connection.send(msgpack.packb(request))
        session = msgpack.unpackb(await connection.recv())["result"]["session"]
        await spill(rig.bus, session, [b"\xff\x00"])
        event = msgpack.unpackb(await connection.recv())["params"]

    assert event["data"] == {"stream": "stdout", "offset": 0, "data": b"\xff\x00"}


async def test_a_replay_has_the_bytes_too(rig: GatewayRig, socket: Socket, gateway: RunningGateway) -> None:
    """More of them than one read of the store brings, over both doors."""
    session = await socket.open()
    joined = await socket.call("session/open", session=session)
    pieces = [f"{number:07} {'x' * 40_000}\n".encode() for number in range(150)]
    await spill(rig.bus, session, pieces)
    live = [event["data"]["text"].encode() for event in await socket.events(len(pieces))]
    async with gateway.socket() as other:
        await other.open(session=session, epoch=joined["epoch"], seq=0)
        again = [event["data"]["text"].encode() for event in await other.events(len(pieces))]

    assert live == pieces
    assert again == pieces


async def test_two_streams_that_take_turns_keep_their_bytes(rig: GatewayRig, socket: Socket) -> None:
    """Though what was read ahead of the one is read again."""
    session = await socket.open()
    seq = 0
    for number in range(20):
        writers = {
            stream: rig.bus.write_object(f"{session}.{JOB}-{stream}-{number}") for stream in ("stdout", "stderr")
        }
        for stream, writer in writers.items():
            for part in range(2):
                chunk = await writer.put(f"{stream} {number} {part}\n".encode())
                place = {"object": writer.object_id, "chunk": await writer.settle(chunk)}
                data = {"stream": stream, "offset": chunk.offset, "size": chunk.size, **place}
                seq = await rig.bus.publish_event(output(session, data), expected=seq)
    told = [event["data"]["text"] for event in await socket.events(80)]

    assert told == [
        f"{stream} {number} {part}\n" for number in range(20) for stream in ("stdout", "stderr") for part in range(2)
    ]


async def test_a_chunk_that_is_gone_is_told_as_lost(rig: GatewayRig, socket: Socket) -> None:
    """It has expired, or its session was closed elsewhere: the events behind it still come."""
    session = await socket.open()
    joined = await socket.call("session/open", session=session)
    seq = await spill(rig.bus, session, [b"gone\n"])
    assert (await socket.event())["data"]["text"] == "gone\n"
    await rig.bus.purge_objects(session)
    await spill(rig.bus, session, [b"here\n"], stream="stderr", after=seq)
    assert (await socket.event())["data"]["text"] == "here\n"
    await socket.call("session/open", session=session, epoch=joined["epoch"], seq=joined["seq"])
    told = [event["data"] for event in await socket.events(2)]

    assert told == [
        {"stream": "stdout", "offset": 0, "size": 5, "lost": True},
        {"stream": "stderr", "offset": 0, "text": "here\n"},
    ]


async def test_the_event_stream_over_http_has_the_bytes_too(
    rig: GatewayRig, socket: Socket, gateway: RunningGateway
) -> None:
    """The same as on a socket."""
    session = await socket.open()
    async with (
        asyncio.timeout(DEADLINE_S),
        gateway.http() as client,
        client.stream("GET", f"/v1/sessions/{session}/events") as answer,
    ):
        lines = answer.aiter_lines()
        assert await anext(lines) != ""
        await spill(rig.bus, session, [b"over http\n"])
        async for line in lines:
            if '"stdout"' in line:
                break

    assert '"text":"over http\\n"' in line
