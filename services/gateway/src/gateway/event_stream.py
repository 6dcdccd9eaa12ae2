"""A session's events as Server-Sent Events (WHATWG HTML, "Server-sent events")."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any, Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from common.allowance import Allowance
from gateway import jsonrpc
from gateway.codec import encode_json
from gateway.connections import Connections
from gateway.following import follow
from gateway.settings import GatewaySettings
from gateway.store import Store

PING: Final = b": ping\n\n"


class EventStream(Response):
    """The answer to `GET …/events`: ends when the client goes or the gateway drains."""

    def __init__(
        self, settings: GatewaySettings, store: Store, connections: Connections, opened: dict[str, Any]
    ) -> None:
        # X-Accel-Buffering: a proxy that collects the body would hold events back.
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(None, 200, headers, "text/event-stream")
        del self.headers["content-length"]
        self._store = store
        self._connections = connections
        self._opened = opened
        self._allowance = Allowance(settings.send_budget_bytes)
        self._ping_interval_s = settings.event_stream_ping_interval_s
        self._sending = asyncio.Lock()
        self._over = asyncio.Event()

    @property
    def sessions(self) -> int:
        return 1

    async def drain(self) -> None:
        self._over.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._connections.holding(self, "event_stream"):
            if self._connections.draining:
                self._over.set()
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async with asyncio.TaskGroup() as tasks:
                parts = [
                    tasks.create_task(self._forward(send)),
                    tasks.create_task(self._ping(send)),
                    tasks.create_task(self._watch(receive)),
                ]
                await self._over.wait()
                for part in parts:
                    part.cancel()
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _forward(self, send: Send) -> None:
        epoch, after = self._opened["epoch"], self._opened["seq"]
        await self._send(send, _message(f"{epoch}:{after}", "open", self._opened))
        async with aclosing(follow(self._store, self._opened["session"], after, self._allowance)) as events:
            async for stored in events:
                message = _message(f"{epoch}:{stored.seq}", stored.event.type, jsonrpc.event_params(stored))
                await self._send(send, message)

    async def _ping(self, send: Send) -> None:
        while True:
            await asyncio.sleep(self._ping_interval_s)
            await self._send(send, PING)

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            continue
        self._over.set()

    async def _send(self, send: Send, body: bytes) -> None:
        """Returns when the client's socket has taken it, so a slow client holds its own stream up."""
        async with self._sending:
            await send({"type": "http.response.body", "body": body, "more_body": True})


def _message(event_id: str, event: str, data: dict[str, Any]) -> bytes:
    # JSON has no raw line feeds, so the data is one line.
    return f"id: {event_id}\nevent: {event}\ndata: {encode_json(data)}\n\n".encode()
