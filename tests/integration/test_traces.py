"""One trace from the client to the container, through real gateway, NATS, worker and container."""

from __future__ import annotations

import asyncio

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from common import tracing
from tests.collector import Collector, attributes, collector
from tests.gateway_rig import gateway_rig
from tests.nats_server import NatsServer
from tests.worker_rig import worker_rig

pytestmark = pytest.mark.docker

CATALOG = """
servers:
  shared: {image: mcp-orchestrator/fixture:local, scope: shared, pool: {min: 1, max: 1}}
"""
TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
SECRET = "not-for-a-trace"


async def traced(
    found: Collector, nats_server: NatsServer, docker_host: str, monkeypatch: pytest.MonkeyPatch, tool: str
) -> dict[str, object]:
    """Call the tool; its `result`. When this returns the spans are at the collector."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
    exporting = tracing.exporting("stack")
    exporting.__enter__()
    try:
        async with worker_rig(nats_server.url, docker_host) as worker:
            await worker.apply(CATALOG)
            worker.start_worker()
            await worker.listing("shared")
            async with gateway_rig(nats_server.url) as rig:
                gateway = await rig.start()
                async with gateway.socket() as socket:
                    session = await socket.open()
                    accepted = await socket.call(
                        "tools/call",
                        session=session,
                        server="shared",
                        name=tool,
                        arguments={"text": SECRET},
                        _meta={"traceparent": f"00-{TRACE}-{CALLER}-01"},
                    )
                    while True:
                        event = await socket.event()
                        if event["job"] == accepted["job"] and event["type"] == "result":
                            data: dict[str, object] = event["data"]
                            break
        return data
    finally:
        await asyncio.to_thread(exporting.__exit__, None, None, None)
