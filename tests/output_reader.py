"""What a client makes of a job's output events, and a WebSocket client whose reading a test controls."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgpack
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_socket
from websockets.typing import Subprotocol

from client import Event
from client.endpoint import endpoint
from client.session import DEFAULT_KEY


@dataclass
class Heard:
    """One stream as its events made it up, without a gap or a repeat."""

    size: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    lost: bool = False
    """A part was told to be gone from the store."""
    first: bytes = b""
    """Its first events, as long as they are few."""

    @property
    def sha256(self) -> str:
        return str(self.digest.hexdigest())


class OutputReader:
    """Takes the events of one job in their order, and discards what a new attempt makes void."""

    def __init__(self) -> None:
        self.streams: dict[str, Heard] = {}
        self.end: Event | None = None
        self.starts: list[Event] = []
        self.void: list[int] = []
        """What had come of stdout where an attempt was discarded."""
        self._moved = asyncio.Condition()

    @property
    def stdout(self) -> int:
        """Bytes that have come."""
        return self.streams["stdout"].size if "stdout" in self.streams else 0

    def told(self, stream: str = "stdout") -> dict[str, Any]:
        """What the terminal event says of a stream."""
        assert self.end is not None
        told: dict[str, Any] = self.end.data["output"][stream]
        return told

    def assert_whole(self) -> None:
        """The events are what the terminal event says: every stream, every byte."""
        assert self.end is not None
        told = {name: (stream["size"], stream["sha256"]) for name, stream in self.end.data.get("output", {}).items()}
        assert {name: (heard.size, heard.sha256) for name, heard in self.streams.items()} == told

    async def take(self, event: Event) -> None:
        if event.type == "started":
            self.starts.append(event)
            if event.data.get("discard"):
                self.void.append(self.stdout)
                self.streams.clear()
        elif event.type == "output":
            data = event.data
            heard = self.streams.setdefault(data["stream"], Heard())
            assert data["offset"] == heard.size, "a gap or a repeat"
            assert event.attempt == self.starts[-1].attempt
            if data.get("lost"):
                heard.size += data["size"]
                heard.lost = True
                return
            piece = data["text"].encode() if "text" in data else data["data"]
            heard.digest.update(piece)
            heard.size += len(piece)
            if len(heard.first) < 64 * 1024:
                heard.first += piece
        elif event.terminal:
            self.end = event
        async with self._moved:
            self._moved.notify_all()

    async def reached(self, size: int) -> None:
        """Returns when so much of stdout has come, or all there is."""
        async with self._moved:
            await self._moved.wait_for(lambda: self.stdout >= size or self.end is not None)


@asynccontextmanager
async def raw_client(url: str, session: str) -> AsyncIterator[ClientConnection]:
    """A socket that has joined a session. Who does not `recv()` leaves its events in the kernel's buffers, and then at
    the gateway."""
    socket = await open_socket(
        endpoint(url),
        subprotocols=[Subprotocol("mcp.msgpack")],
        additional_headers={"Authorization": f"Bearer {DEFAULT_KEY}"},
        compression=None,
        max_queue=1,
        max_size=None,
        ping_interval=None,
    )
    try:
        opening = {"jsonrpc": "2.0", "id": 1, "method": "session/open", "params": {"session": session}}
        await socket.send(msgpack.packb(opening))
        answer = msgpack.unpackb(await socket.recv())
        assert answer["result"]["session"] == session
        yield socket
    finally:
        socket.transport.abort()  # a farewell would wait behind what was not read
        await socket.wait_closed()


async def next_event(socket: ClientConnection) -> Event:
    return Event.from_params(msgpack.unpackb(await socket.recv())["params"])
