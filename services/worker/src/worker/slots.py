"""The concurrency limit: so many jobs in this process, so many of them of one server."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from common import metrics


class Slots:
    """Counts what runs. Whoever asked to be told is woken when a slot comes free."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._by_server: dict[str, int] = {}
        self._limits: dict[str, int] = {}
        self._waiting: deque[tuple[str, asyncio.Future[None]]] = deque()
        self._on_free: dict[str, Callable[[], None]] = {}

    def add_server(self, server: str, limit: int, on_free: Callable[[], None]) -> None:
        self._limits[server] = limit
        self._on_free[server] = on_free

    def remove_server(self, server: str, on_free: Callable[[], None]) -> None:
        """As it was added; one that was added anew meanwhile stays."""
        if self._on_free.get(server) == on_free:
            del self._limits[server], self._on_free[server]

    def room(self, server: str) -> int:
        """How many more jobs of this server may start now."""
        return max(0, min(self.limit - self.used, self._limits.get(server, 0) - self._by_server.get(server, 0)))

    def try_take(self, server: str) -> bool:
        if self.room(server) == 0:
            return False
        self.used += 1
        self._by_server[server] = self._by_server.get(server, 0) + 1
        metrics.JOBS_RUNNING.labels(server).inc()
        return True

    async def take(self, server: str) -> None:
        """Wait for a slot, in the order of asking."""
        if not self._waiting and self.try_take(server):
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((server, turn))
        self._serve_waiting()  # those before it may wait for their own server's limit
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release(server)  # it was given to us in the moment that we gave up
            raise

    def release(self, server: str) -> None:
        self.used -= 1
        self._by_server[server] -= 1
        metrics.JOBS_RUNNING.labels(server).dec()
        self._serve_waiting()
        for on_free in self._on_free.values():
            on_free()

    def _serve_waiting(self) -> None:
        """Give what is free to whoever waits; one server at its own limit does not hold up the others."""
        for _ in range(len(self._waiting)):
            server, turn = self._waiting.popleft()
            if turn.done():
                continue
            if self.try_take(server):
                turn.set_result(None)
            else:
                self._waiting.append((server, turn))
