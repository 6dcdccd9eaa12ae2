"""What operators and probes ask without a key: `/livez`, `/readyz`, `/metrics`."""

from __future__ import annotations

import asyncio

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from common import metrics
from gateway.connections import Connections
from gateway.store import Store


class Health:
    def __init__(self, store: Store, connections: Connections) -> None:
        self._store = store
        self._connections = connections

    def routes(self) -> list[Route]:
        return [
            Route("/livez", self._livez),
            Route("/readyz", self._readyz),
            Route("/metrics", self._metrics),
        ]

    async def _livez(self, request: Request) -> Response:
        return JSONResponse({"status": "live"})

    async def _readyz(self, request: Request) -> Response:
        reason = self._not_ready()
        if reason:
            return JSONResponse({"status": "not ready", "reason": reason}, 503)
        return JSONResponse({"status": "ready"})

    def _not_ready(self) -> str | None:
        return "draining" if self._connections.draining else self._store.fault

    async def _metrics(self, request: Request) -> Response:
        metrics.SERVICE_READY.set(0 if self._not_ready() else 1)
        # In a thread: the process collector reads /proc.
        return Response(await asyncio.to_thread(generate_latest), media_type=CONTENT_TYPE_LATEST)
