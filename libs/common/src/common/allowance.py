"""How many bytes may be held at once for one client, by all that reads for it.

What is live is taken only where there is room, because it can be read from the store later; what is read from the
store waits for room. Nobody waits for ever: when everybody who holds something waits for more, the first of them gets
it, so that the bound is exceeded by at most one item, and only where the alternative is to stand still.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

DEFAULT_BYTES: Final = 4 * 1024 * 1024


class Allowance:
    """Bytes that the shares of one connection may hold together. Used within one event loop, so nothing is locked."""

    def __init__(self, limit: int = DEFAULT_BYTES) -> None:
        self.limit = limit
        self._held = 0
        self._shares: set[Share] = set()
        self._waiting: deque[_Waiting] = deque()

    @property
    def held(self) -> int:
        """Bytes that are held now."""
        return self._held

    @contextmanager
    def share(self) -> Iterator[Share]:
        """The part of one reader. Whatever it holds on leaving is given back, however that comes about."""
        share = Share(self)
        self._shares.add(share)
        try:
            yield share
        finally:
            self._shares.discard(share)
            share._close()

    def _try_take(self, share: Share, size: int) -> bool:
        if self._waiting or self._held + size > self.limit:
            return False
        self._hold(share, size)
        return True

    async def _take(self, share: Share, size: int) -> None:
        waiting = _Waiting(share, size, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        share.waits = True
        self._admit()
        try:
            await waiting.granted
        except asyncio.CancelledError:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
                share.waits = False
                self._admit()
            else:
                share.give(size)  # it was granted in the same moment
            raise

    def _hold(self, share: Share, size: int) -> None:
        self._held += size
        share.held += size

    def _release(self, share: Share, size: int) -> None:
        self._held -= size
        share.held -= size
        self._admit()

    def _admit(self) -> None:
        """Grant what can be granted, in the order in which it was asked for."""
        while self._waiting:
            first = self._waiting[0]
            # Somebody who holds something and does not wait will give it back; then this is looked at again.
            if self._held + first.size > self.limit and any(s.held and not s.waits for s in self._shares):
                return
            self._waiting.popleft()
            first.share.waits = False
            self._hold(first.share, first.size)
            first.granted.set_result(None)


class Share:
    """What one reader holds of an allowance. Made by `Allowance.share()`; one task at a time waits in `take`."""

    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance
        self._open = True
        self.held = 0
        self.waits = False
        self.shed: Callable[[], None] | None = None
        """Called before this share waits: gives back what its reader can have again from the store. A reader that
        waited with its hands full would be waited for by the others."""

    @property
    def limit(self) -> int:
        """Bytes of the whole allowance."""
        return self._allowance.limit

    def try_take(self, size: int) -> bool:
        """Hold so many bytes more, if there is room and nobody has waited for it longer."""
        return self._open and self._allowance._try_take(self, size)

    async def take(self, size: int) -> None:
        """Returns when so many bytes more may be held: at once if there is room.

        More than the whole allowance has passes when nobody else holds anything that will be given back.
        """
        assert self._open, "a share that was closed takes nothing"
        if self.try_take(size):
            return
        if self.shed is not None:
            self.shed()
        await self._allowance._take(self, size)

    def give(self, size: int) -> None:
        """Give back what is held no more. After the share's end it has been given back already."""
        if self._open:
            self._allowance._release(self, size)

    def _close(self) -> None:
        if self._open:
            self._allowance._release(self, self.held)
            self._open = False


class _Waiting(NamedTuple):
    share: Share
    size: int
    granted: asyncio.Future[None]


@contextmanager
def own_share() -> Iterator[Share]:
    """For a reader that shares with nobody."""
    with Allowance().share() as share:
        yield share
