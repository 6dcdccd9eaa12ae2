"""GET /debug/memory: for operators, and only where it was asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.gateway_rig import GatewayRig, gateway_rig
from tests.nats_server import NatsServer


@pytest.fixture
async def rig(nats_server: NatsServer) -> AsyncIterator[GatewayRig]:
    async with gateway_rig(nats_server.url) as rig:
        yield rig


async def test_an_operator_sees_what_the_gateway_holds(rig: GatewayRig) -> None:
    """Connections, sessions, resident bytes, and objects by type."""
    gateway = await rig.start_gateway(debug_memory=True, operators="acme")
    async with gateway.socket() as socket, gateway.http() as http:
        await socket.call("session/open")

        report = (await http.get("/debug/memory")).json()

    assert (report["connections"], report["sessions"]) == (1, 1)
    assert report["resident_bytes"] > 1_000_000
    assert report["types"][0]["count"] >= report["types"][1]["count"] > 0


async def test_nobody_else_does(rig: GatewayRig) -> None:
    """Another tenant and whoever has no key are refused."""
    gateway = await rig.start_gateway(debug_memory=True, operators="umbra")
    async with gateway.http() as http:
        refused = await http.get("/debug/memory")
        nobody = await http.get("/debug/memory", headers={"Authorization": ""})

    assert (refused.status_code, refused.json()["type"]) == (403, "operators_only")
    assert nobody.status_code == 401


async def test_by_default_there_is_no_such_page(rig: GatewayRig) -> None:
    """It stops the gateway while it counts."""
    gateway = await rig.start_gateway(operators="acme")
    async with gateway.http() as http:
        assert (await http.get("/debug/memory")).status_code == 404
