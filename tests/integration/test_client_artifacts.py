"""The client's downloads from real gateways, also when gateways and connections go."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from client import ConnectionLost, Damaged, Refused, Session, connect
from common import subjects
from tests.gateway_rig import DEADLINE_S, GatewayRig, RunningGateway, gateway_rig
from tests.nats_server import NatsServer
from tests.stored_artifacts import BODY, LARGE, store, store_for

Rewrite = Callable[[bytes], bytes]


@pytest.fixture
async def rig(nats_server: NatsServer) -> AsyncIterator[GatewayRig]:
    async with gateway_rig(nats_server.url) as rig:
        await rig.add_server()
        yield rig


@pytest.fixture
async def gateway(rig: GatewayRig) -> RunningGateway:
    return await rig.start_gateway()


@asynccontextmanager
async def session_at(*addresses: str, reconnect_s: float = 30.0) -> AsyncIterator[Session]:
    async with (
        asyncio.timeout(DEADLINE_S),
        connect([f"http://{each}" for each in addresses], key="acme-key", reconnect_s=reconnect_s) as session,
    ):
        yield session


async def whole(session: Session, job: str, *, stderr: bool = False) -> bytes:
    async with session.artifact(job, stderr=stderr) as artifact:
        return b"".join([piece async for piece in artifact])


async def stopping_meanwhile(session: Session, job: str, gateway: RunningGateway) -> None:
    async with session.artifact(job) as artifact:
        async for _ in artifact:
            await gateway.stop()


@asynccontextmanager
async def proxy(
    upstream: str, *cuts: int, rewrite: Rewrite = lambda data: data
) -> AsyncIterator[tuple[str, list[str]]]:
    """Stands before a gateway, and cuts each HTTP answer after so many bytes, the last ones not. Its address, and the
    first lines of the requests and their Range headers."""
    asked: list[str] = []
    left = list(cuts)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        is_socket = b"upgrade: websocket" in head.lower()
        room = None if is_socket or not left else left.pop(0)
        if not is_socket:
            asked.append(next((line for line in head.decode().split("\r\n") if line.lower().startswith("range")), ""))
        host, _, port = upstream.partition(":")
        up_reader, up_writer = await asyncio.open_connection(host, int(port))
        up_writer.write(head)

        async def upwards() -> None:
            while data := await reader.read(65_536):
                up_writer.write(data)
            up_writer.close()

        async with asyncio.TaskGroup() as tasks:
            forwarding = tasks.create_task(upwards())
            while data := await up_reader.read(65_536 if room is None else min(room, 65_536)):
                writer.write(rewrite(data))
                await writer.drain()
                if room is not None:
                    room -= len(data)
                    if room <= 0:
                        break
            forwarding.cancel()
        up_writer.close()
        writer.close()

    async with asyncio.TaskGroup() as connections:

        def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connections.create_task(quietly(serve(reader, writer)))

        server = await asyncio.start_server(take, "127.0.0.1", 0)
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", asked
        server.close()


async def quietly(serving: Coroutine[Any, Any, None]) -> None:
    try:
        await serving
    except* (OSError, asyncio.IncompleteReadError):
        pass  # the client or the gateway has left


async def test_an_artifact_is_downloaded_whole_and_its_facts_are_known_before(
    rig: GatewayRig, gateway: RunningGateway
) -> None:
    """Output and stderr, each its own."""
    async with session_at(gateway.address) as session:
        job = await store(rig.bus, session.id)
        await store_for(rig.bus, session.id, job, b"oh", "stderr", "text/plain; charset=utf-8")

        async with session.artifact(job) as artifact:
            told = (artifact.size, artifact.sha256, artifact.media_type)
            got = b"".join([piece async for piece in artifact])

        assert told == (len(BODY), hashlib.sha256(BODY).hexdigest(), "text/plain; charset=utf-8")
        assert got == BODY
        assert await whole(session, job, stderr=True) == b"oh"


async def test_what_is_not_there_is_refused_as_the_gateway_says(gateway: RunningGateway) -> None:
    """With its sentence."""
    async with session_at(gateway.address) as session:
        with pytest.raises(Refused, match="may have expired") as refused:
            await whole(session, subjects.new_job_id())

    assert (refused.value.type, refused.value.code) == ("unknown_artifact", 404)


async def test_an_empty_artifact_is_nothing(rig: GatewayRig, gateway: RunningGateway) -> None:
    """And no error."""
    async with session_at(gateway.address) as session:
        assert await whole(session, await store(rig.bus, session.id, b"")) == b""


async def test_a_download_that_breaks_off_goes_on_where_it_was(rig: GatewayRig, gateway: RunningGateway) -> None:
    """Twice, and each time only the rest is asked for."""
    async with proxy(gateway.address, 100_000, 150_000) as (address, asked), session_at(address) as session:
        job = await store(rig.bus, session.id)

        assert await whole(session, job) == BODY

    assert len(asked) == 3
    assert asked[0] == ""
    starts = [int(each.partition("=")[2].rstrip("-")) for each in asked[1:]]
    assert 0 < starts[0] < starts[1] < len(BODY)


async def test_a_download_goes_on_at_another_gateway(rig: GatewayRig, gateway: RunningGateway) -> None:
    """The first one drains while half of it is here."""
    other = await rig.start_gateway()
    async with session_at(gateway.address, other.address) as session:
        job = await store(rig.bus, session.id, LARGE)
        got = bytearray()
        async with session.artifact(job) as artifact:
            async for piece in artifact:
                if not got:
                    await gateway.stop()
                got += piece

    assert got == LARGE


async def test_a_download_that_does_not_come_back_fails_in_the_end(rig: GatewayRig, gateway: RunningGateway) -> None:
    """It says how far it had come, and why."""
    async with session_at(gateway.address, reconnect_s=0.2) as session:
        job = await store(rig.bus, session.id, LARGE)
        with pytest.raises(ConnectionLost, match=r"broke off at byte [1-9]\d* and did not go on within 0\.2 s"):
            await stopping_meanwhile(session, job, gateway)


async def test_other_bytes_than_announced_are_not_taken_for_the_artifact(
    rig: GatewayRig, gateway: RunningGateway
) -> None:
    """Somebody between changed one."""
    body = b"all is well" * 100
    async with (
        proxy(gateway.address, rewrite=lambda data: data.replace(b"well", b"hell", 1)) as (address, _),
        session_at(address) as session,
    ):
        job = await store(rig.bus, session.id, body)

        with pytest.raises(Damaged, match="another SHA-256"):
            await whole(session, job)


async def test_an_answer_in_pieces_is_whole_for_who_runs_a_tool(rig: GatewayRig, gateway: RunningGateway) -> None:
    """The pieces come from the object store; the terminal event has but a preview."""
    answer = b'{"content": [{"type": "text", "text": "' + b"a" * 300_000 + b'"}]}'
    async with session_at(gateway.address) as session, asyncio.TaskGroup() as group:
        running = group.create_task(session.run("math", "add", {"a": 1, "b": 2}))
        job = await queued_job(rig, session.id)
        await rig.start_job(session.id, job)
        writer = rig.bus.write_object(subjects.new_object_id(session.id, job, "result"))
        for offset in range(0, len(answer), 100_000):
            piece = answer[offset : offset + 100_000]
            seq = await writer.settle(await writer.put(piece))
            named: dict[str, Any] = {"object": writer.object_id, "chunk": seq}
            await rig.add_event(session.id, job, stream="result", offset=offset, size=len(piece), **named)
        output = {"result": {"size": len(answer), "sha256": hashlib.sha256(answer).hexdigest()}}
        await rig.end_job(session.id, job, result={"content": []}, output=output)
        result = await running

    assert result.text == "a" * 300_000
    assert result.output == output


async def queued_job(rig: GatewayRig, session: str) -> str:
    """The id of the session's one job, as soon as the gateway has accepted it."""
    async with rig.bus.subscribe_session(session, 0) as feed:
        async for stored in feed:
            return stored.event.job
    raise AssertionError("the feed ended")
