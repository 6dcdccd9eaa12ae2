"""NATS away: at the start, later, and for good."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from common import bus as common_bus
from common import registry
from common.catalog import ServerSpec
from common.settings import BusSettings
from tests.gateway_rig import GatewayRig, RunningGateway, gateway_rig, start_gateway
from tests.nats_server import NatsServer, run_nats_server


@pytest.fixture
async def rig(nats_server: NatsServer) -> AsyncIterator[GatewayRig]:
    async with gateway_rig(nats_server.url) as rig:
        await rig.add_server()
        yield rig


async def assert_refused_for_now(gateway: RunningGateway, session: str = "s") -> None:
    """Every method that needs the store says so at once, on both doors."""
    async with gateway.socket() as socket, gateway.http() as http, asyncio.timeout(2):
        errors = [
            await socket.refused("session/open"),
            await socket.refused("session/close", session=session),
            await socket.refused("tools/call", session=session, server="math", name="add"),
            await socket.refused("job/get", session=session, job="j"),
            await socket.refused("job/cancel", session=session, job="j"),
        ]
        answers = [
            await http.post("/v1/sessions"),
            await http.get(f"/v1/sessions/{session}/events"),
            await http.get(f"/v1/sessions/{session}/jobs/j"),
        ]
        status = await socket.call("status/get")

    for error in errors:
        assert (error["code"], error["data"]["type"], error["data"]["retryable"]) == (503, "store_unavailable", True)
    for answer in answers:
        assert (answer.status_code, answer.json()["type"]) == (503, "store_unavailable")
        assert answer.headers["retry-after"] == "1"
    assert status["gateway"]["connected"] is False
    assert "NATS" in status["gateway"]["reason"]


async def test_a_gateway_serves_before_nats_is_there_and_works_once_it_is(tmp_path: Path) -> None:
    """Alive at once, not ready with the reason, every method refused; ready without a restart."""
    async with run_nats_server(tmp_path) as nats:
        await nats.stop()
        async with asyncio.TaskGroup() as tasks:
            gateway = start_gateway(nats.url, tasks)
            async with gateway.http(key=None) as http:
                livez = await http.get("/livez")
            before = await gateway.readiness()
            await assert_refused_for_now(gateway)
            async with gateway.socket() as socket:
                unread = await socket.refused("servers/list")

                await nats.start()
                await gateway.until_ready()

                opened = await socket.open()
                servers = await socket.call("servers/list")
            await gateway.stop()

    assert livez.status_code == 200
    assert before == (503, {"status": "not ready", "reason": "connecting to NATS"})
    assert unread["data"]["type"] == "store_unavailable"
    assert opened
    assert servers == {"servers": []}


async def test_while_nats_is_away_requests_are_refused_at_once(nats_server: NatsServer, rig: GatewayRig) -> None:
    """Not after a timeout; the catalog, which is in memory, is still answered."""
    gateway = await rig.start_gateway()
    await nats_server.stop()
    await gateway.until_ready(False)

    readiness = await gateway.readiness()
    await assert_refused_for_now(gateway)
    async with gateway.socket() as socket:
        servers = await socket.call("servers/list")

    await nats_server.start()
    await gateway.until_ready()
    assert readiness == (503, {"status": "not ready", "reason": "the connection to NATS is lost, reconnecting"})
    assert [server["name"] for server in servers["servers"]] == ["math"]


@pytest.mark.parametrize("kill", [False, True])
async def test_a_clients_events_go_on_after_an_outage_without_a_gap_or_a_repeat(
    nats_server: NatsServer, rig: GatewayRig, kill: bool
) -> None:
    """The socket stays open through it; what was stored meanwhile, by whomever, is read back."""
    gateway = await rig.start_gateway()
    async with gateway.socket() as socket:
        session = await socket.open()
        seqs = await rig.add_output(session, 5)
        events = await socket.events(5)
        await nats_server.stop(kill=kill)
        await gateway.until_ready(False)
        await nats_server.start()
        seqs += await _store_by_another(nats_server, session)
        await gateway.until_ready()
        seqs += await _store_by_another(nats_server, session)
        events += await socket.events(len(seqs) - 5)

    assert [event["seq"] for event in events] == seqs


async def _store_by_another(nats_server: NatsServer, session: str) -> list[int]:
    """Events by another writer, who may be quicker to reconnect than the gateway."""
    async with common_bus.connect(BusSettings(nats_url=nats_server.url), "writer") as bus:
        writer = GatewayRig(nats_server.url, bus, asyncio.TaskGroup(), {})
        return await writer.add_output(session, 20)


async def test_an_event_stream_over_http_goes_on_after_an_outage(nats_server: NatsServer, rig: GatewayRig) -> None:
    """As a socket does."""
    gateway = await rig.start_gateway()
    async with gateway.http() as http:
        session = (await http.post("/v1/sessions")).json()["session"]
        async with http.stream("GET", f"/v1/sessions/{session}/events") as answer, asyncio.timeout(20):
            lines = answer.aiter_lines()
            await anext(lines)
            await nats_server.stop()
            await gateway.until_ready(False)
            await nats_server.start()
            await gateway.until_ready()
            seqs = await _store_by_another(nats_server, session)
            ids: list[int] = []
            while len(ids) < len(seqs):
                line = await anext(lines)
                if line.startswith("id: ") and int(line.split(":")[2]) >= seqs[0]:
                    ids.append(int(line.split(":")[2]))

    assert ids == seqs


async def test_the_catalog_is_followed_again_after_an_outage(nats_server: NatsServer, rig: GatewayRig) -> None:
    """What changed meanwhile is seen, removals too."""
    await rig.add_server("old")
    gateway = await rig.start_gateway()
    await nats_server.stop()
    await gateway.until_ready(False)
    await nats_server.start()
    async with common_bus.connect(BusSettings(nats_url=nats_server.url), "writer") as bus:
        await registry.apply(bus, {"new": ServerSpec(image="none")})
    await gateway.until_ready()

    async with gateway.socket() as socket, asyncio.timeout(5):
        while [s["name"] for s in (await socket.call("servers/list"))["servers"]] != ["new"]:
            continue
