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
    found: Collector,
    nats_server: NatsServer,
    docker_host: str,
    monkeypatch: pytest.MonkeyPatch,
    tool: str,
    **arguments: str,
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
                gateway = await rig.start_gateway()
                await gateway.until_ready()
                async with gateway.socket() as socket:
                    session = await socket.open()
                    await socket.until_status("shared", "ready")
                    accepted = await socket.call(
                        "tools/call",
                        session=session,
                        server="shared",
                        name=tool,
                        arguments=arguments,
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


def chain(found: Collector, innermost: Span) -> list[tuple[str, str]]:
    """Names and kinds from the outermost span to this one; the outermost one's parent is the caller."""
    by_id = {span.span_id.hex(): span for span in found.spans}
    names: list[tuple[str, str]] = []
    id_ = innermost.span_id.hex()
    while id_ in by_id:
        span = by_id[id_]
        names.insert(0, (span.name, Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower()))
        id_ = span.parent_span_id.hex()
    assert id_ == CALLER
    return names


async def test_a_call_is_one_trace_from_the_client_to_the_container(
    nats_server: NatsServer, docker_host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step is the child of the one before, named by the conventions; no argument or answer is told."""
    with collector() as found:
        end = await traced(found, nats_server, docker_host, monkeypatch, "echo", text=SECRET)
        (calling,) = found.named("tools/call echo")
        (processing,) = found.named("process jobs.shared")
        (acquiring,) = found.named("acquire")
        (sending,) = found.named("send jobs.shared")

        assert end["outcome"] == "succeeded"
        assert chain(found, calling) == [
            ("tools/call", "server"),
            ("send jobs.shared", "producer"),
            ("process jobs.shared", "consumer"),
            ("tools/call echo", "client"),
        ]
        assert {span.trace_id.hex() for span in (calling, processing, acquiring, sending)} == {TRACE}
        assert acquiring.parent_span_id == processing.span_id
        sent, processed, called = attributes(sending), attributes(processing), attributes(calling)
        assert sent["messaging.system"] == "nats"
        assert sent["messaging.operation.type"] == "send"
        assert sent["messaging.destination.template"] == "jobs.shared.{session}"
        assert processed["messaging.message.id"] == sent["messaging.message.id"]
        assert processed["messaging.consumer.group.name"] == "shared"
        assert processed["mcp_orchestrator.attempt"] == 1
        assert processed["mcp_orchestrator.outcome"] == "succeeded"
        assert called["mcp.method.name"] == "tools/call"
        assert called["gen_ai.tool.name"] == "echo"
        assert "error.type" not in called
        assert not any(SECRET.encode() in body for body in found.bodies)


async def test_each_attempt_of_a_job_is_a_span_of_its_trace(
    nats_server: NatsServer, docker_host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repeatable tool whose server ends each time: each attempt says so, all but the last that another follows."""
    with collector() as found:
        end = await traced(found, nats_server, docker_host, monkeypatch, "break_down", words=SECRET)
        attempts = found.named("process jobs.shared")

        assert end["outcome"] == "dead_lettered"
        assert {span.trace_id.hex() for span in attempts} == {TRACE}
        assert len({span.parent_span_id for span in attempts}) == 1
        assert [attributes(span)["mcp_orchestrator.attempt"] for span in attempts] == [1, 2, 3]
        assert [attributes(span)["error.type"] for span in attempts] == ["server_gone"] * 3
        assert [[event.name for event in span.events] for span in attempts] == [["retrying"], ["retrying"], []]
        assert not any(SECRET.encode() in body for body in found.bodies)
