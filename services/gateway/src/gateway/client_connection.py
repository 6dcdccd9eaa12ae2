"""One client's TCP connection: Hypercorn's, with three repairs that it has no settings for.

- A closed connection is let go at once. Hypercorn 0.18 waits for its idle timer (`keep_alive_timeout`) and for
  its ping timer (`websocket_ping_interval`), so that every closed connection stays in memory until then, and
  every shutdown takes all the time it is given.
- permessage-deflate is declined. Hypercorn agrees to it with whoever offers it; it costs each connection about
  300 KB, and lets a small frame unpack to a large one before any limit is looked at.
- A connection can be cut (`cut()`) without cancelling its task, which CPython 3.11 reports as an error.
"""

from __future__ import annotations

import asyncio
from typing import Any

from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import EventWrapper, WorkerContext
from hypercorn.config import Config
from hypercorn.protocol import ws_stream
from hypercorn.typing import ConnectionState
from starlette.types import ASGIApp
from wsproto.extensions import PerMessageDeflate


class ClientConnection(TCPServer):
    """Serves one connection until the client or `ending` ends it: `await` it once.

    When `ending` is set an idle connection closes; one with a request on it closes after the answer.
    """

    def __init__(
        self,
        app: ASGIApp,
        config: Config,
        ending: EventWrapper,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._context = _ConnectionContext(ending)
        wrapped: Any = ASGIWrapper(app)  # type: ignore[arg-type]
        loop = asyncio.get_running_loop()
        super().__init__(wrapped, loop, config, self._context, ConnectionState({}), reader, writer)

    def cut(self) -> None:
        """End it without a word: nothing that waits to be sent is sent."""
        self.writer.transport.abort()

    async def _read_data(self) -> None:
        await super()._read_data()
        self._context.over.set()
        await self.idle_task.stop()


class _ConnectionContext(WorkerContext):
    """What a connection knows of its server."""

    def __init__(self, ending: EventWrapper) -> None:
        super().__init__(max_requests=None)
        self.terminated = ending
        self.over = asyncio.Event()

    async def sleep(self, wait: float) -> None:  # type: ignore[override]
        """Between two pings: ends early when the connection does."""
        try:
            async with asyncio.timeout(wait):
                await self.over.wait()
        except TimeoutError:
            return


class _NoCompression(PerMessageDeflate):
    def accept(self, offer: str) -> bool | str | None:
        return None


ws_stream.PerMessageDeflate = _NoCompression  # type: ignore[attr-defined]
