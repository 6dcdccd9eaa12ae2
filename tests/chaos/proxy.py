"""A TCP proxy that does to connections what networks do: ends them, slows them down, holds them up, half of them."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tests.ports import free_port

CHUNK_BYTES = 64 * 1024
CONNECT_TIMEOUT_S = 5.0


def reset(transport: asyncio.WriteTransport) -> None:
    """End a connection without a goodbye: the peer sees a reset, not an end."""
    if not transport.is_closing():
        lingering = struct.pack("ii", 1, 0)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, lingering)
        transport.abort()


@dataclass(eq=False)
class _Link:
    """One connection of a client, and ours to the server in its name."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    half_closed: bool = False

    def abort(self) -> None:
        """Both sides see their connection reset."""
        reset(self.client.transport)
        reset(self.server.transport)


class Proxy:
    """Listens on `port` and forwards to 127.0.0.1:`to`. Made by `run_proxy()`."""

    def __init__(self, port: int, to: int, tasks: asyncio.TaskGroup) -> None:
        self.port = port
        self._to = to
        self._tasks = tasks
        self._links: set[_Link] = set()
        self._moving = asyncio.Event()
        self._moving.set()
        self._delay_s = 0.0
        self._refusing = False

    @property
    def connections(self) -> int:
        return len(self._links)

    # --- faults ---------------------------------------------------------------------------------------

    def drop(self) -> None:
        """End every connection, and refuse new ones until `heal()`."""
        self._refusing = True
        self._abort_all()

    def delay(self, seconds: float) -> None:
        """Hold back each piece of data for that long, in both directions, until `heal()`."""
        self._delay_s = seconds

    def stall(self) -> None:
        """Move nothing until `heal()`; no side learns of it."""
        self._moving.clear()

    def half_close(self) -> None:
        """The server sees the end of every connection, the client sees nothing: until `heal()`, which ends it."""
        for link in self._links:
            link.half_closed = True
            if link.server.can_write_eof() and not link.server.transport.is_closing():
                link.server.write_eof()

    def heal(self) -> None:
        """Forward as a wire does. What was half closed ends now, as a peer that has gone would answer."""
        self._refusing = False
        self._delay_s = 0.0
        self._moving.set()
        for link in self._links:
            if link.half_closed:
                link.abort()

    def _abort_all(self) -> None:
        for link in self._links:
            link.abort()

    # --- forwarding -----------------------------------------------------------------------------------

    async def serve(self, client_reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        """Forward one connection; returns when it has ended on both sides."""
        if self._refusing:
            reset(client.transport)
            return
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                server_reader, server = await asyncio.open_connection("127.0.0.1", self._to)
        except (OSError, TimeoutError):
            reset(client.transport)
            return
        link = _Link(client, server)
        if self._refusing:  # since it came
            link.abort()
            return
        self._links.add(link)
        try:
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(client_reader, server, link))
                pumps.create_task(self._pump(server_reader, client, link))
        finally:
            self._links.discard(link)
            link.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: _Link) -> None:
        """One direction, until its sender ends it. What breaks on one side is broken on the other."""
        try:
            while data := await reader.read(CHUNK_BYTES):
                if self._delay_s:
                    await asyncio.sleep(self._delay_s)
                await self._moving.wait()
                if link.half_closed and writer is link.server:
                    continue  # nobody hears it any more
                if writer.transport.is_closing():
                    return  # aborted while the data was held back
                writer.write(data)
                await writer.drain()
            if writer.can_write_eof() and not writer.transport.is_closing() and not link.half_closed:
                writer.write_eof()
        except OSError:
            link.abort()

    def on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.create_task(self.serve(reader, writer))


@asynccontextmanager
async def run_proxy(to: int) -> AsyncIterator[Proxy]:
    """A proxy on a port of its own; its connections end with the context."""
    port = free_port()
    async with asyncio.TaskGroup() as tasks:
        proxy = Proxy(port, to, tasks)
        server = await asyncio.start_server(proxy.on_connection, "127.0.0.1", port)
        try:
            yield proxy
        finally:
            server.close()
            proxy.heal()
            proxy.drop()
