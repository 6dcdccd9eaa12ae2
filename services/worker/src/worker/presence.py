"""The worker as others see it: a NATS micro service (NATS ADR-32) and three HTTP endpoints for probes.

`nats micro ls`, `nats micro info worker` and `nats micro stats worker` show every worker, with its slots and pools.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import nats.micro
from aiohttp import web
from nats.micro.request import Request
from nats.micro.service import EndpointStats
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from common import headers, metrics, subjects
from common.bus import Bus
from common.consumer import Delivery
from common.errors import UndecodableMessage
from common.runtime import memory_report
from common.schema import Job
from worker.leases import NOT_HELD, TAKEN

VERSION = "0.1.0"

Stats = Callable[[], dict[str, Any]]
Receive = Callable[[Delivery], bool]


@asynccontextmanager
async def micro_service(bus: Bus, worker: str, stats: Stats, receive: Receive) -> AsyncIterator[None]:
    """Answer on `$SRV.>` and take handed-over jobs while the context is open."""

    async def take_over(request: Request) -> None:
        fields = request.headers or {}
        try:
            job = Job.decode(request.data)
        except UndecodableMessage as exc:
            await request.respond_error("400", exc.message)
            return
        delivery = Delivery(
            client=bus.client,
            job=job,
            payload=request.data,
            ack_subject=fields[headers.ACK_SUBJECT],
            stream_seq=int(fields[headers.SEQUENCE]),
            deliveries=int(fields[headers.DELIVERED]),
            traceparent=fields.get(headers.TRACEPARENT),
        )
        await request.respond(TAKEN if receive(delivery) else NOT_HELD)

    async def be_alive(request: Request) -> None:
        await request.respond(b"")

    def endpoint_stats(_: EndpointStats) -> dict[str, Any]:
        return stats()

    service = await nats.micro.add_service(
        bus.client,
        name="worker",
        version=VERSION,
        description="Runs jobs in containers.",
        metadata={"worker": worker, "host": socket.gethostname()},
        stats_handler=endpoint_stats,
    )
    try:
        await service.add_endpoint(
            name="handoff", subject=subjects.handoff(worker), handler=take_over, queue_group=worker
        )
        await service.add_endpoint(name="alive", subject=subjects.alive(worker), handler=be_alive, queue_group=worker)
        yield
    finally:
        if not bus.client.is_closed:
            await service.stop()


@asynccontextmanager
async def health_server(
    host: str, port: int, not_ready: Callable[[], str], *, debug_memory: bool = False
) -> AsyncIterator[int]:
    """Serve /livez, /readyz and /metrics; yields the port. `not_ready()` is the reason, or empty.

    With `debug_memory` also /debug/memory: the port is the operators' own, so nobody is asked for a key.
    """

    async def live(_: web.Request) -> web.Response:
        return web.Response(text="live\n")

    async def ready(_: web.Request) -> web.Response:
        reason = not_ready()
        return web.Response(text=f"{reason or 'ready'}\n", status=503 if reason else 200)

    async def show_metrics(_: web.Request) -> web.Response:
        metrics.SERVICE_READY.set(0 if not_ready() else 1)
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def show_memory(_: web.Request) -> web.Response:
        return web.json_response(memory_report())

    app = web.Application()
    routes: list[tuple[str, Callable[[web.Request], Awaitable[web.StreamResponse]]]] = [
        ("/livez", live),
        ("/readyz", ready),
        ("/metrics", show_metrics),
        *([("/debug/memory", show_memory)] if debug_memory else []),
    ]
    for path, handler in routes:
        app.router.add_get(path, handler)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        bound: int = runner.addresses[0][1]
        yield bound
    finally:
        await runner.cleanup()
