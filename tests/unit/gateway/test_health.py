"""Probes."""

from __future__ import annotations

import httpx

from gateway.app import create_app
from gateway.settings import GatewaySettings


async def test_a_draining_gateway_is_alive_and_not_ready() -> None:
    """Whatever NATS says: nobody should be sent here any more."""
    app = create_app(GatewaySettings())
    app.state.gateway.connections.start_draining()
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
        livez, readyz, metrics = [await http.get(path) for path in ("/livez", "/readyz", "/metrics")]

    assert livez.status_code == 200
    assert (readyz.status_code, readyz.json()) == (503, {"status": "not ready", "reason": "draining"})
    assert "\nservice_ready 0.0\n" in metrics.text
