"""The feeds of one connection, by session."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from common.feed import SessionFeed


class Feeds:
    """Whom to tell that live messages may have been lost."""

    def __init__(self) -> None:
        self._of_session: dict[str, tuple[SessionFeed, ...]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._of_session.values()))

    @contextmanager
    def holding(self, session: str, feed: SessionFeed) -> Iterator[None]:
        self._of_session[session] = (*self._of_session.get(session, ()), feed)
        try:
            yield
        finally:
            left = tuple(other for other in self._of_session[session] if other is not feed)
            if left:
                self._of_session[session] = left
            else:
                del self._of_session[session]

    def expect(self, session: str, seq: int) -> None:
        """An event with this number was stored for the session: it has to come."""
        for feed in self._of_session.get(session, ()):
            feed.expect(seq)

    def resync(self) -> None:
        """Live messages of any session may have been lost."""
        for feeds in self._of_session.values():
            for feed in feeds:
                feed.resync()
