"""The connections that clients hold open, and their end when the gateway drains."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

from common import metrics

Door = Literal["websocket", "event_stream", "artifact"]


class Connection(Protocol):
    """A connection that stays open until somebody ends it."""

    @property
    def sessions(self) -> int:
        """How many sessions' events it carries."""

    async def drain(self) -> None:
        """Finish what is being answered, then say goodbye so that the client comes back elsewhere.

        Returns when the goodbye is sent, which a client that does not read can hold up for ever.
        """


class Connections:
    """All open connections of this gateway."""

    def __init__(self) -> None:
        self._open: set[Connection] = set()
        self._draining = asyncio.Event()

    @property
    def draining(self) -> bool:
        return self._draining.is_set()

    @property
    def count(self) -> int:
        return len(self._open)

    @property
    def sessions(self) -> int:
        return sum(connection.sessions for connection in self._open)

    @contextmanager
    def holding(self, connection: Connection, door: Door) -> Iterator[None]:
        """Count the connection as open, and have it drained with the others."""
        self._open.add(connection)
        metrics.CONNECTIONS_OPEN.labels(door).inc()
        try:
            yield
        finally:
            self._open.discard(connection)
            metrics.CONNECTIONS_OPEN.labels(door).dec()

    def start_draining(self) -> None:
        self._draining.set()

    async def drain_when_told(self) -> None:
        """Wait for `start_draining()`, then end all connections at the same time."""
        await self._draining.wait()
        async with asyncio.TaskGroup() as tasks:
            for connection in self._open:
                tasks.create_task(connection.drain())
