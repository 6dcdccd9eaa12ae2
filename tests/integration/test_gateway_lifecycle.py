"""The gateway as a process: its start, its settings, its end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from nats.aio.msg import Msg
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError

from common import bus as common_bus
from common import subjects
from common.settings import BusSettings
from gateway.settings import DEVELOPMENT_KEY
from tests.gateway_rig import DEADLINE_S, GatewayRig, gateway_rig
from tests.nats_server import NatsServer
from tests.settled import settled

KEY = {"Authorization": f"Bearer {DEVELOPMENT_KEY}"}


class GatewayProcess:
    """`python -m gateway` and what it logs, line by line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []

    async def until(self, event: str) -> dict[str, Any]:
        """The line that logs `event`."""
        assert self.process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            async for raw in self.process.stdout:
                self.lines.append(json.loads(raw))
                if self.lines[-1]["event"] == event:
                    return self.lines[-1]
        raise AssertionError(f"{event!r} was not logged: {self.lines}")

    async def end(self) -> tuple[int, str]:
        """Exit code and stderr; whatever else it logs is kept."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        async with asyncio.timeout(DEADLINE_S):
            stderr = (await self.process.stderr.read()).decode()
            self.lines += [json.loads(raw) async for raw in self.process.stdout]
            return await self.process.wait(), stderr


@asynccontextmanager
async def run_gateway(**environment: str) -> AsyncIterator[GatewayProcess]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gateway",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "PORT": "0", "LOG_FORMAT": "json", **environment},
    )
    try:
        yield GatewayProcess(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def until_ready(url: str) -> None:
    async with httpx.AsyncClient(trust_env=False) as http, asyncio.timeout(DEADLINE_S):
        while (await http.get(f"{url}/readyz")).status_code != 200:
            continue


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_gateway_cleanly(nats_server: NatsServer, signum: signal.Signals) -> None:
    """Open sockets are closed with 1012, event streams end, the exit code is 0, and nothing is complained about."""
    async with run_gateway(NATS_URL=nats_server.url, DRAIN_TIMEOUT_S="5") as gateway:
        url = (await gateway.until("gateway listening"))["url"]
        await until_ready(url)
        async with (
            connect(url.replace("http", "ws") + "/v1/ws", additional_headers=KEY, proxy=None) as websocket,
            httpx.AsyncClient(base_url=url, headers=KEY, trust_env=False) as http,
        ):
            await websocket.send('{"jsonrpc": "2.0", "id": 1, "method": "session/open"}')
            session = json.loads(await websocket.recv())["result"]["session"]
            async with http.stream("GET", f"/v1/sessions/{session}/events") as answer:
                lines = answer.aiter_lines()
                await anext(lines)
                started = asyncio.get_running_loop().time()
                gateway.process.send_signal(signum)
                with pytest.raises(ConnectionClosedError) as closed:
                    await websocket.recv()
                rest = [line async for line in lines]
        code, stderr = await gateway.end()
        took_s = asyncio.get_running_loop().time() - started

    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012
    assert rest[0] == "event: open"
    assert (code, stderr) == (0, "")
    assert [line["event"] for line in gateway.lines if line["level"] in ("warning", "error")] == []
    assert gateway.lines[-1]["event"] == "gateway stopped"
    assert took_s < 3


async def test_a_client_that_does_not_read_is_cut_when_the_drain_is_over(nats_server: NatsServer) -> None:
    """Nobody can hold the gateway up: the exit comes within the budget, without a traceback."""
    async with (
        run_gateway(NATS_URL=nats_server.url, DRAIN_TIMEOUT_S="0.5") as gateway,
        common_bus.connect(BusSettings(nats_url=nats_server.url), "test") as bus,
    ):
        url = (await gateway.until("gateway listening"))["url"]
        await until_ready(url)
        async with connect(
            url.replace("http", "ws") + "/v1/ws", additional_headers=KEY, proxy=None, max_queue=1, close_timeout=0.1
        ) as websocket:
            await websocket.send('{"jsonrpc": "2.0", "id": 1, "method": "session/open"}')
            session = json.loads(await websocket.recv())["result"]["session"]
            rig = GatewayRig(nats_server.url, bus, asyncio.TaskGroup(), {})
            await rig.add_output(session, 300, text="x" * 50_000)
            started = asyncio.get_running_loop().time()
            gateway.process.terminate()
            code, stderr = await gateway.end()
            took_s = asyncio.get_running_loop().time() - started

    assert (code, stderr) == (0, "")
    assert took_s < 3


async def test_it_stops_at_once_while_it_still_waits_for_nats() -> None:
    """A gateway that never found NATS is not in the way either."""
    async with run_gateway(NATS_URL="nats://127.0.0.1:9") as gateway:
        await gateway.until("gateway listening")
        gateway.process.terminate()
        code, stderr = await gateway.end()

    assert (code, stderr) == (0, "")


async def test_a_stream_with_other_settings_ends_the_gateway_with_code_3(nats_server: NatsServer) -> None:
    """It says which stream, what differs, and what to do: waiting would help nobody."""
    async with (
        gateway_rig(nats_server.url, queue_limit=7),
        run_gateway(NATS_URL=nats_server.url, QUEUE_LIMIT="8") as gateway,
    ):
        code, stderr = await gateway.end()

    fault = next(line for line in gateway.lines if line["level"] == "error")
    assert (code, stderr) == (3, "")
    assert "stream JOBS exists with other settings: max_msgs_per_subject is 7, wanted 8" in fault["reason"]


async def test_an_address_that_is_taken_ends_the_gateway_with_code_1() -> None:
    """And with a line that says which."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        async with run_gateway(PORT=port) as gateway:
            code, stderr = await gateway.end()

    assert (code, stderr) == (1, "")
    assert gateway.lines[-1]["event"] == "gateway cannot listen"
    assert gateway.lines[-1]["port"] == int(port)


async def test_faults_in_the_settings_are_told_together_with_code_2() -> None:
    """Before anything is opened, and without a value that may be a secret."""
    async with run_gateway(PORT="http", API_KEYS='{"acme": "sesame"}', MAX_REQUEST_BYTES="1") as gateway:
        code, stderr = await gateway.end()

    assert code == 2
    assert "GatewaySettings: 3 setting(s) cannot be used" in stderr
    for name in ("PORT", "API_KEYS", "MAX_REQUEST_BYTES"):
        assert f"  {name}: " in stderr
    assert "sesame" not in stderr


async def test_answers_that_are_owed_come_before_the_goodbye(nats_server: NatsServer) -> None:
    """A request that came before the drain is answered, then the socket is closed with 1012."""
    async with gateway_rig(nats_server.url) as rig:
        gateway = await rig.start_gateway()
        await rig.add_worker()
        async with gateway.connect() as connection:
            # status/get waits 0.3 s for workers' answers, so it is under way when the drain begins.
            await connection.send('{"jsonrpc": "2.0", "id": 1, "method": "status/get"}')
            await connection.send('{"jsonrpc": "2.0", "id": 2, "method": "servers/list"}')
            assert json.loads(await connection.recv())["id"] == 2
            gateway.start_stopping()
            answer = json.loads(await connection.recv())
            with pytest.raises(ConnectionClosedError) as closed:
                await connection.recv()

    assert answer["id"] == 1
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012


async def test_a_request_that_waits_for_its_turn_when_the_drain_begins_is_not_looked_at(
    nats_server: NatsServer,
) -> None:
    """The client sends again what has no answer before a 1012: a call that was accepted would run twice."""
    async with gateway_rig(nats_server.url) as rig:
        gateway = await rig.start_gateway(max_requests_per_connection=1)
        await rig.add_server()
        asked = asyncio.Event()

        async def hear(_: Msg) -> None:
            asked.set()

        await rig.bus.client.subscribe(subjects.micro_stats("worker"), cb=hear)
        await settled(rig.bus)
        async with gateway.socket() as socket:
            await socket.until_status("math", "ready")
            session = await socket.open()
            call = {"session": session, "server": "math", "name": "add", "arguments": {"a": 1, "b": 2}}
            # status/get waits 0.3 s for workers' answers, and has the only place.
            await socket.send_request("first", "status/get")
            await socket.send_request("second", "tools/call", **call)
            async with asyncio.timeout(DEADLINE_S):
                await asked.wait()
            gateway.start_stopping()
            answer = await socket.answer()
            with pytest.raises(ConnectionClosedError) as closed:
                await socket.answer()
        await gateway.stop()
        queued = await rig.queued("math")

    assert answer["id"] == "first"
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012
    assert queued == 0
