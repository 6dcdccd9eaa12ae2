"""The sending side of one request or WebSocket, watched: does its client take what is sent?

A send ends when the client's socket has taken it, so a client that reads nothing holds up whoever sends to it, and
what that one holds. Stalled is a send of which nothing at all was taken for `stalled_s`; however slowly a client reads,
it is not stalled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from starlette.types import Message, Scope, Send

from common import metrics
from common.log import get

_log = get(__name__)

SENDER: Final = "sender"
"""Where the client's connection leaves the `Sender` in `scope["state"]`."""
LOOKS: Final = 4
"""So often a send is looked at in `stalled_s`."""


class Outflow(Protocol):
    """What lies below: the client's connection."""

    @property
    def taken(self) -> int:
        """Bytes that the client's socket has taken so far."""

    def cut(self) -> None:
        """End the connection: nothing that waits to be sent is sent."""


class Sender:
    """Sends like the ASGI `send` that it is made of."""

    def __init__(self, outflow: Outflow, scope: Scope, send: Send, stalled_s: float) -> None:
        self._outflow = outflow
        self._path = scope["path"]
        self._send = send
        self._stalled_s = stalled_s
        self._stalled = False
        self.on_stalled: Callable[[], None] = outflow.cut
        """Called once, when the client is found to be stalled."""

    async def send(self, message: Message) -> None:
        """Returns when the client's socket has taken it; see `on_stalled` for one that does not."""
        watch = _Watch(self._outflow, self._stalled_s, self._stall)
        try:
            await self._send(message)
        finally:
            watch.end()

    def cut(self) -> None:
        """End the connection: nothing that waits to be sent is sent."""
        self._outflow.cut()

    def _stall(self) -> None:
        if self._stalled:
            return
        self._stalled = True
        metrics.CONNECTIONS_STALLED.inc()
        _log.info("client reads nothing, its connection ends", path=self._path, after_s=self._stalled_s)
        self.on_stalled()


class _Watch:
    """Looks at one send until it has ended, or nothing was taken for `stalled_s`."""

    def __init__(self, outflow: Outflow, stalled_s: float, on_stalled: Callable[[], None]) -> None:
        self._outflow = outflow
        self._stalled_s = stalled_s
        self._on_stalled = on_stalled
        self._taken = outflow.taken
        self._in_vain = 0
        self._wait()

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._stalled_s / LOOKS, self._look)

    def _look(self) -> None:
        taken = self._outflow.taken
        self._in_vain = 0 if taken > self._taken else self._in_vain + 1
        self._taken = taken
        if self._in_vain < LOOKS:
            self._wait()
        else:
            self._on_stalled()

    def end(self) -> None:
        self._timer.cancel()
