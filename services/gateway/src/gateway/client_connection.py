"""One client's TCP connection: Hypercorn's, with five repairs that it has no settings for.

- A closed connection is let go at once. Hypercorn 0.18 waits for its idle timer (`keep_alive_timeout`) and for
  its ping timer (`websocket_ping_interval`), so that every closed connection stays in memory until then, and
  every shutdown takes all the time it is given.
- permessage-deflate is declined. Hypercorn agrees to it with whoever offers it; it costs each connection about
  300 KB, and lets a small frame unpack to a large one before any limit is looked at.
- What is sent is counted and written at once, then its sender waits until the client takes it: so a send that is
  cancelled has been sent, and a last word can follow it. Hypercorn's senders wait for each other before they write.
- A sender whose connection is gone goes on at once: the reader tells the request. Hypercorn's senders tell it
  themselves, which waits until the request listens, which it may not before it has sent.
- A connection can be cut (`cut()`) without cancelling its task, which CPython 3.11 reports as an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any

from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import EventWrapper, WorkerContext
from hypercorn.config import Config
from hypercorn.events import Event, RawData
from hypercorn.protocol import ws_stream
from hypercorn.typing import ConnectionState
from starlette.types import ASGIApp, Receive, Scope, Send
from wsproto.extensions import PerMessageDeflate

from gateway.sender import SENDER, Sender


class ClientConnection(TCPServer):
    """Serves one connection until the client or `ending` ends it: `await` it once.

    When `ending` is set an idle connection closes; one with a request on it closes after the answer. A client that
    takes nothing of what is sent to it for `stalled_s` is cut, unless the request's `Sender` is told otherwise.
    """

    def __init__(
        self,
        app: ASGIApp,
        config: Config,
        ending: EventWrapper,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        stalled_s: float,
    ) -> None:
        self._context = _ConnectionContext(ending)
        self._served = app
        self._stalled_s = stalled_s
        self._written = 0
        wrapped: Any = ASGIWrapper(self._serve)  # type: ignore[arg-type]
        loop = asyncio.get_running_loop()
        super().__init__(wrapped, loop, config, self._context, ConnectionState({}), reader, writer)

    @property
    def taken(self) -> int:
        """Bytes that the client's socket has taken so far."""
        return self._written - self.writer.transport.get_write_buffer_size()

    def cut(self) -> None:
        """End it without a word: nothing that waits to be sent is sent."""
        self.writer.transport.abort()

    async def protocol_send(self, event: Event) -> None:
        if not isinstance(event, RawData):
            await super().protocol_send(event)
            return
        if self.writer.transport.is_closing():
            await asyncio.sleep(0)
            return
        self._written += len(event.data)
        with suppress(OSError, RuntimeError):  # OSError: the kernel's ETIMEDOUT is no ConnectionError
            self.writer.write(event.data)
            await self.writer.drain()

    def _serve(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        sender = Sender(self, scope, send, self._stalled_s)
        scope["state"][SENDER] = sender
        return self._served(scope, receive, sender.send)

    async def _read_data(self) -> None:
        await super()._read_data()
        self._context.end()
        await self.idle_task.stop()


class _ConnectionContext(WorkerContext):
    """What a connection knows of its server."""

    def __init__(self, ending: EventWrapper) -> None:
        super().__init__(max_requests=None)
        self.terminated = ending
        self._over = False
        self._waiting: asyncio.Future[None] | None = None

    def end(self) -> None:
        """The connection is over."""
        self._over = True
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def sleep(self, wait: float) -> None:  # type: ignore[override]
        """Between two pings: ends early when the connection does. One task of the connection sleeps.

        Ten thousand of them do: a timer and a future cost a third of what an event and `asyncio.timeout` do.
        """
        if self._over:
            return
        loop = asyncio.get_running_loop()
        self._waiting = loop.create_future()
        timer = loop.call_later(wait, self._wake)
        try:
            await self._waiting
        finally:
            timer.cancel()


class _NoCompression(PerMessageDeflate):
    def accept(self, offer: str) -> bool | str | None:
        return None


ws_stream.PerMessageDeflate = _NoCompression  # type: ignore[attr-defined]
