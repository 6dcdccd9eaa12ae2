"""So many containers boot at once, those that a job waits for first.

More boots at once than cores only make each later (measured: 2.4/s at 2, 2.2/s at 8). After an outage of the engine
every pool refills at the same time, and spare containers must not stand in the way of waiting jobs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

Wanted = Callable[[], bool]
"""Does somebody wait for this boot? Asked when a place comes free."""


class BootGate:
    """All boots of a worker go through it."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._waiting: list[tuple[Wanted, asyncio.Future[None]]] = []
        """In the order of their coming."""

    @asynccontextmanager
    async def place(self, wanted: Wanted) -> AsyncIterator[None]:
        """A place for one boot, as soon as there is one."""
        if self._places:
            self._places -= 1
        else:
            await self._turn(wanted)
        try:
            yield
        finally:
            self._give_back()

    async def _turn(self, wanted: Wanted) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = wanted, turn
        self._waiting.append(entry)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give_back()  # it was given to us in the moment that we gave up
            else:
                self._waiting.remove(entry)
            raise

    def _give_back(self) -> None:
        if not self._waiting:
            self._places += 1
            return
        entry = next((entry for entry in self._waiting if entry[0]()), self._waiting[0])
        self._waiting.remove(entry)
        entry[1].set_result(None)
