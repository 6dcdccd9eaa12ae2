"""What operators and probes ask without a key: `/livez`, `/readyz`, `/metrics`."""

from __future__ import annotations

import asyncio

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

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
        reason = "draining" if self._connections.draining else self._store.fault
        if reason:
            return JSONResponse({"status": "not ready", "reason": reason}, 503)
        return JSONResponse({"status": "ready"})

    async def _metrics(self, request: Request) -> Response:
        # In a thread: the process collector reads /proc.
        return Response(await asyncio.to_thread(generate_latest), media_type=CONTENT_TYPE_LATEST)
