"""A real gateway behind a real nginx with the configuration of compose.yaml."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect

from standalone.process import run_process
from tests.gateway_rig import DEADLINE_S, GatewayRig, RunningGateway, Socket, gateway_rig
from tests.nats_server import NatsServer
from tests.ports import free_port
from tests.programs import program
from tests.stored_artifacts import LARGE, store

CONFIG = Path(__file__).parents[2] / "deploy/nginx"
KEY = {"Authorization": "Bearer acme-key"}


def written(folder: Path, port: int, gateways: list[str]) -> Path:
    """The configuration with another port, other folders, and gateways that are named by address."""
    text = (CONFIG / "nginx.conf").read_text()
    for old, new in (("listen 8080;", f"listen 127.0.0.1:{port};"), ("/tmp/", f"{folder}/")):
        assert old in text
        text = text.replace(old, new)
    # Of the root's processes nginx makes workers of another user, who cannot enter the folder of a test.
    if os.geteuid() == 0:
        text = f"user root;\n{text}"
    (folder / "nginx.conf").write_text(text)
    servers = "\n".join(f"  server {each} max_fails=0;" for each in gateways)
    (folder / "upstream.conf").write_text(f"upstream gateways {{\n  zone gateways 128k;\n{servers}\n}}\n")
    return folder / "nginx.conf"


def checked(config: Path) -> None:
    """`nginx -t`."""
    command = [str(program("nginx")), "-t", "-p", str(config.parent), "-c", str(config)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert found.returncode == 0, found.stderr
    assert "[warn]" not in found.stderr, found.stderr


class Nginx:
    """One nginx; made by `run_nginx()`."""

    def __init__(self, port: int) -> None:
        self.address = f"127.0.0.1:{port}"

    def http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=f"http://{self.address}", headers=KEY, trust_env=False, timeout=DEADLINE_S)

    @asynccontextmanager
    async def socket(self) -> AsyncIterator[Socket]:
        url = f"ws://{self.address}/v1/ws"
        async with connect(url, additional_headers=KEY, proxy=None, max_size=None) as connection:
            yield Socket(connection)


@asynccontextmanager
async def run_nginx(folder: Path, gateways: list[str]) -> AsyncIterator[Nginx]:
    port = free_port()
    config = written(folder, port, gateways)
    checked(config)
    argv = [str(program("nginx")), "-p", str(folder), "-c", str(config), "-g", "daemon off;"]
    async with run_process("nginx", argv, log=folder / "nginx.log", stop_timeout_s=10):
        async with asyncio.timeout(DEADLINE_S):
            while True:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                await asyncio.sleep(0.01)
        yield Nginx(port)


@pytest.fixture
async def rig(nats_server: NatsServer) -> AsyncIterator[GatewayRig]:
    program("nginx")
    async with gateway_rig(nats_server.url) as rig:
        await rig.add_server()
        yield rig


@pytest.fixture
async def gateways(rig: GatewayRig) -> list[RunningGateway]:
    return [await rig.start_gateway(), await rig.start_gateway()]


@pytest.fixture
async def nginx(gateways: list[RunningGateway], tmp_path: Path) -> AsyncIterator[Nginx]:
    folder = tmp_path / "nginx"
    folder.mkdir()
    async with run_nginx(folder, [each.address for each in gateways]) as running:
        yield running


async def test_a_websocket_carries_a_call_and_its_session_is_resumed_when_its_gateway_went_away(
    rig: GatewayRig, gateways: list[RunningGateway], nginx: Nginx
) -> None:
    """The client comes back to the same address, reaches the other gateway, and misses no event."""
    async with nginx.socket() as first:
        session = await first.open()
        await first.until_status("math", "ready")
        call = {"session": session, "server": "math", "name": "add", "arguments": {"a": 1, "b": 2}}
        job = (await first.call("tools/call", **call))["job"]
        queued = await first.event()
        await gateways[0].stop()

    await rig.start_job(session, job)
    await rig.end_job(session, job)
    async with nginx.socket() as second:
        await second.call("session/open", session=session, epoch=rig.bus.epoch, seq=queued["seq"])
        events = await second.events(2)

    assert [event["type"] for event in (queued, *events)] == ["queued", "started", "result"]


async def test_an_artifact_passes_whole_and_in_part(rig: GatewayRig, nginx: Nginx) -> None:
    """As the gateway gives it, with its length and its ranges."""
    async with nginx.http() as http:
        session = (await http.post("/v1/sessions")).json()["session"]
        job = await store(rig.bus, session, LARGE)
        whole = await http.get(f"/v1/sessions/{session}/artifacts/{job}")
        part = await http.get(f"/v1/sessions/{session}/artifacts/{job}", headers={"Range": "bytes=7-99"})

    assert whole.content == LARGE
    assert (part.status_code, part.content) == (206, LARGE[7:100])


async def test_a_file_goes_to_a_container_whole(rig: GatewayRig, nginx: Nginx) -> None:
    """Larger than what nginx takes by default."""
    await rig.add_server("box", scope="session")
    async with nginx.socket() as socket:
        await socket.until_status("box", "ready")
        session = await socket.open()
        async with nginx.http() as http:
            accepted = await http.put(f"/v1/sessions/{session}/servers/box/files/large.bin", content=LARGE)

    assert accepted.status_code == 202, accepted.text
    assert await rig.queued("box") == 1


async def test_an_event_stream_passes_each_event_when_it_is_stored(rig: GatewayRig, nginx: Nginx) -> None:
    """The second event is stored only after the first was read: nothing waits for a full buffer."""
    async with nginx.http() as http, asyncio.timeout(DEADLINE_S):
        session = (await http.post("/v1/sessions")).json()["session"]
        first = (await rig.add_output(session, 1))[0]
        url = f"/v1/sessions/{session}/events"
        start = {"Last-Event-ID": f"{rig.bus.epoch}:{first - 1}"}
        async with http.stream("GET", url, headers=start) as stream:
            ids = (line.partition(":")[2].strip() async for line in stream.aiter_lines() if line.startswith("id:"))
            got = [await anext(ids), await anext(ids)]
            second = (await rig.add_output(session, 1))[0]
            got.append(await anext(ids))

    assert got == [f"{rig.bus.epoch}:{number}" for number in (first - 1, first, second)]


async def test_what_is_for_operators_is_not_served_to_the_outside(nginx: Nginx) -> None:
    async with nginx.http() as http:
        statuses = [(await http.get(path)).status_code for path in ("/metrics", "/debug/memory", "/livez")]

    assert statuses == [404, 404, 200]
