"""The gateway put together: what it holds, its routes, and its life."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Mount, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from common.errors import ServiceError
from gateway.admission import Admission
from gateway.artifacts import ArtifactDoor
from gateway.authentication import Authentication, Keys
from gateway.catalog_view import CatalogView
from gateway.chat import Chat
from gateway.connections import Connections
from gateway.conversation import Conversation
from gateway.dead_letters import DeadLetters
from gateway.debug import Debug
from gateway.file_door import FileDoor
from gateway.files import Files
from gateway.health import Health
from gateway.http import HttpDoor
from gateway.jobs import Jobs
from gateway.methods import Methods
from gateway.problem import on_http_exception, on_service_error
from gateway.queue_positions import QueuePositions
from gateway.sessions import Sessions
from gateway.settings import GatewaySettings
from gateway.status import Status
from gateway.store import Store
from gateway.sweeper import Sweeper
from gateway.unread_body import UnreadBody
from gateway.websocket import WebSocketDoor

WEBSOCKET_PATH: Final = "/v1/ws"
LEAVES_NATS_WITHIN_S: Final = 3.0
"""How long the closing of NATS may take before it is cut short."""


class Gateway:
    """One gateway: everything that its doors share.

    Stateless but for caches: any gateway serves any session.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self.settings = settings
        self.store = Store(settings)
        self.catalog = CatalogView()
        self.connections = Connections()
        self.positions = QueuePositions(self.store)
        self.failed = asyncio.Event()
        self.failure: Exception | None = None
        """What ended the background work, if it did not end by being stopped; `failed` is set then."""
        self.sessions = Sessions(self.store)
        admission = Admission(self.store, settings)
        jobs = Jobs(self.store, self.catalog, admission, self.positions, settings.job_timeout_ms)
        self.files = Files(
            self.store, self.catalog, admission, jobs, settings.job_timeout_ms, settings.max_upload_bytes
        )
        self.methods = Methods(
            self.sessions,
            Conversation(self.store, settings.operators),
            jobs,
            Chat(self.store, jobs, settings.chat_timeout_ms, settings.job_timeout_ms),
            self.files,
            DeadLetters(self.store, self.catalog, self.sessions, settings.job_timeout_ms, settings.operators),
            self.catalog,
            Status(self.store, self.catalog, self.connections),
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Hold the connection to NATS, do what goes on beside requests, drain the connections when told."""
        async with asyncio.TaskGroup() as tasks:
            background = {
                tasks.create_task(self._hold_store()),
                tasks.create_task(self.positions.run()),
                tasks.create_task(self.connections.drain_when_told()),
                tasks.create_task(Sweeper(self.store, self.catalog, self.settings.sweep_period_s).run()),
            }
            yield
            await _end(background)

    async def _hold_store(self) -> None:
        try:
            await self.store.hold(self.catalog)
        except Exception as exc:  # noqa: BLE001 - whatever it is, the process has to end with it, not to linger
            self.failure = exc
            self.failed.set()


async def _end(tasks: set[asyncio.Task[None]]) -> None:
    """Cancel until they have ended: CPython 3.11's `wait_for`, which nats-py uses, may lose a cancellation."""
    while tasks:
        for task in tasks:
            task.cancel()
        _, tasks = await asyncio.wait(tasks, timeout=LEAVES_NATS_WITHIN_S)


def create_app(settings: GatewaySettings) -> Starlette:
    """The ASGI application; its lifespan holds the connection to NATS, and `app.state.gateway` is the Gateway.

    It serves from the first moment; what needs NATS is refused until NATS is there. `Front` has it serve WebSockets by
    a shorter way.
    """
    gateway = Gateway(settings)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with gateway.running():
            yield

    store, methods, connections = gateway.store, gateway.methods, gateway.connections
    websocket = WebSocketDoor(settings, store, methods, connections)
    doors = [
        WebSocketRoute("/ws", websocket),
        *HttpDoor(settings, store, methods, connections).routes(),
        *ArtifactDoor(store, gateway.sessions, connections).routes(),
        *FileDoor(gateway.sessions, gateway.files).routes(),
    ]
    keys = Keys(settings.api_keys)
    debug = Debug(connections, settings.operators).routes() if settings.debug_memory else []
    app = Starlette(
        lifespan=lifespan,
        routes=[
            *Health(store, connections).routes(),
            Mount("/v1", routes=doors, middleware=[Middleware(Authentication, keys=keys)]),
            Mount("/debug", routes=debug, middleware=[Middleware(Authentication, keys=keys)]),
        ],
        middleware=[Middleware(UnreadBody)],
        exception_handlers={ServiceError: on_service_error, HTTPException: on_http_exception},
    )
    app.state.gateway = gateway
    app.state.websocket = Authentication(websocket, keys)
    return app


class Front:
    """ASGI: a WebSocket goes straight to its door, everything else through Starlette.

    For as long as it is open a WebSocket would hold the frames of Starlette's routing and middleware, none of which
    does anything for it.
    """

    def __init__(self, app: Starlette) -> None:
        self._app = app
        self._websocket: ASGIApp = app.state.websocket

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "websocket" and scope["path"] == WEBSOCKET_PATH:
            return self._websocket(scope, receive, send)
        return self._app(scope, receive, send)
