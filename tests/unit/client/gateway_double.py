"""A gateway that keeps its events in memory and does only what a test tells it.

It speaks the WebSocket door of docs/protocol.md. Several can share one store, as gateways of a cluster do.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

KEY = "development"
SESSION = "session1"

Handler = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass
class Store:
    """What all gateways of a cluster know."""

    epoch: str = "e1"
    events: list[dict[str, Any]] = field(default_factory=list)
    lost_up_to: int = 0
    """Events up to this number can no longer be replayed."""
    gateways: list[GatewayDouble] = field(default_factory=list)

    @property
    def last(self) -> int:
        return self.events[-1]["seq"] if self.events else 100

    def add(self, job: str, type: str, *, attempt: int = 1, **data: Any) -> dict[str, Any]:
        """Store an event without telling anybody."""
        event = {
            "session": SESSION,
            "job": job,
            "seq": self.last + 3,  # numbers have gaps
            "attempt": attempt,
            "type": type,
            "time_ms": 0,
            "data": data,
        }
        self.events.append(event)
        return event

    async def emit(self, job: str, type: str, **data: Any) -> dict[str, Any]:
        """Store an event and send it to every joined socket."""
        event = self.add(job, type, **data)
        for gateway in self.gateways:
            await gateway.send_event(event)
        return event

    def restart(self, epoch: str) -> None:
        """Lose everything, as a wiped store does."""
        self.epoch, self.events = epoch, []


@dataclass
class HeldRequest:
    """A request that a test answers by hand."""

    socket: ServerConnection
    id: int
    method: str
    params: dict[str, Any]
    size: int

    async def answer(self, **result: Any) -> None:
        await self.socket.send(json.dumps({"jsonrpc": "2.0", "id": self.id, "result": result}))

    async def refuse(self, code: int, type: str, message: str, *, id: int | None = -1, **data: Any) -> None:
        facts = {"type": type, "message": message, "retryable": False, **data}
        error = {"code": code, "message": message, "data": facts}
        await self.socket.send(json.dumps({"jsonrpc": "2.0", "id": self.id if id == -1 else id, "error": error}))


class GatewayDouble:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.requests: list[str] = []
        """Methods, in the order they came."""
        self.opens: list[dict[str, Any]] = []
        """Params of each session/open."""
        self.held: asyncio.Queue[HeldRequest] = asyncio.Queue()
        """Requests that wait for the test: tools/call and everything in `hold`."""
        self.hold: set[str] = {"tools/call"}
        self.answers: dict[str, dict[str, Any]] = {}
        """What to answer to other methods."""
        self.url = ""
        self._server: Server | None = None
        self._joined: set[ServerConnection] = set()
        store.gateways.append(self)

    async def send_event(self, event: dict[str, Any]) -> None:
        for socket in list(self._joined):
            await self._send_event(socket, event)

    async def _send_event(self, socket: ServerConnection, event: dict[str, Any]) -> None:
        message = {"jsonrpc": "2.0", "method": "notifications/event", "params": event}
        try:
            await socket.send(json.dumps(message))
        except ConnectionClosed:
            self._joined.discard(socket)

    async def send_raw(self, frame: str) -> None:
        for socket in list(self._joined):
            await socket.send(frame)

    def drop(self) -> None:
        """Cut every connection without a word, as a crash does."""
        assert self._server is not None
        for socket in self._server.connections:
            socket.transport.abort()
        self._joined.clear()

    async def close(self, code: int, reason: str) -> None:
        """Say goodbye to every connection."""
        for socket in list(self._joined):
            await socket.close(code, reason)
        self._joined.clear()

    def admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Check the key; the status is told over HTTP too."""
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            return connection.respond(HTTPStatus.UNAUTHORIZED, "")
        if request.path == "/v1/status":
            return connection.respond(HTTPStatus.OK, json.dumps(self.answers["status/get"]))
        return None

    async def serve(self, socket: ServerConnection) -> None:
        try:
            await self._serve(socket)
        except ConnectionClosed:
            self._joined.discard(socket)

    async def _serve(self, socket: ServerConnection) -> None:
        async for frame in socket:
            message = json.loads(frame)
            request = HeldRequest(socket, message["id"], message["method"], message["params"], len(frame))
            self.requests.append(request.method)
            if request.method == "session/open":
                self.opens.append(request.params)
                await self.open(request)
            elif request.method in self.hold:
                self.held.put_nowait(request)
            elif request.method == "session/close":
                await request.answer(session=SESSION, cancelled=[])
            else:
                await request.answer(**self.answers[request.method])

    async def open(self, request: HeldRequest) -> None:
        params, store = request.params, self.store
        missed: list[dict[str, Any]] = []
        recovered, missed_from = False, store.last
        if "seq" in params:
            recovered = params["epoch"] == store.epoch and params["seq"] >= store.lost_up_to
            missed_from = params["seq"] if recovered else store.lost_up_to
            missed = [event for event in store.events if event["seq"] > missed_from]
        await request.answer(session=SESSION, epoch=store.epoch, seq=missed_from, recovered=recovered)
        for event in missed:
            await self._send_event(request.socket, event)
        self._joined.add(request.socket)


@asynccontextmanager
async def run_gateway(store: Store, port: int = 0) -> AsyncIterator[GatewayDouble]:
    gateway = GatewayDouble(store)
    async with serve(
        gateway.serve,
        "127.0.0.1",
        port,
        subprotocols=[Subprotocol("mcp.json")],
        process_request=gateway.admit,
        close_timeout=0.2,
    ) as server:
        gateway._server = server
        gateway.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield gateway
