"""The feeds of one connection: who is told when live messages may have been lost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from common.feed import SessionFeed

LOOK_PERIOD_S: Final = 1.0


class Feeds:
    """One timer for all of them: one for each would cost ten thousand idle sessions more than their clients' pings."""

    def __init__(self) -> None:
        self._of_session: dict[str, tuple[SessionFeed, ...]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return sum(map(len, self._of_session.values()))

    @contextmanager
    def holding(self, session: str, feed: SessionFeed) -> Iterator[None]:
        self._of_session[session] = (*self._of_session.get(session, ()), feed)
        if self._timer is None:
            self._wait()
        try:
            yield
        finally:
            left = tuple(other for other in self._of_session[session] if other is not feed)
            if left:
                self._of_session[session] = left
            else:
                del self._of_session[session]
            if not self._of_session and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def expect(self, session: str, seq: int) -> None:
        """An event with this number was stored for the session: it has to come."""
        now = asyncio.get_running_loop().time()
        for feed in self._of_session.get(session, ()):
            feed.expect(seq, now)

    def resync(self) -> None:
        """Live messages of any session may have been lost."""
        for feeds in self._of_session.values():
            for feed in feeds:
                feed.resync()

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LOOK_PERIOD_S, self._look)

    def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        for feeds in self._of_session.values():
            for feed in feeds:
                feed.look_if_due(now)
        self._wait()
