"""The events of one job, or of all jobs of a session, on their way to one reader."""

from __future__ import annotations

import asyncio
from typing import Final

from client.errors import ClientError
from client.event import Event, Position

READ_AHEAD: Final = 512
"""Events that may wait for a reader."""
READ_AHEAD_BYTES: Final = 4 * 1024 * 1024
"""And what their output may have together."""


class Reader:
    """A bounded queue between the connection and the code that iterates.

    The connection never waits for it: a reader that is more than READ_AHEAD events or READ_AHEAD_BYTES late is
    `behind`, and what comes is dropped. Once it has read what waits, it gets a feed of its own, which does wait
    (`client.session`).
    """

    def __init__(self, job: str | None, position: Position, *, behind: bool = False) -> None:
        self.job = job
        """None reads the events of all jobs."""
        self.until = job
        """The job whose terminal event is the last that is read; None reads on."""
        self.position = position
        """Of the last event that was queued, or where reading starts."""
        self.behind = behind
        self.feed: asyncio.Task[None] | None = None
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue(READ_AHEAD)
        self._held = 0
        """Bytes of output that wait."""
        self._read = asyncio.Event()
        """Set when an event was taken out."""
        self._failure: ClientError | None = None

    @property
    def needs_feed(self) -> bool:
        return self.behind and self.feed is None and self._queue.empty()

    def wants(self, event: Event) -> bool:
        """Is an event that was read one of those that are yielded? Asked once of each, in order."""
        return True

    def offer(self, event: Event) -> None:
        """Queue an event from the session's connection, unless this reader is behind."""
        if self.behind or event.seq <= self.position.seq:
            return
        if self._queue.full() or self._held > READ_AHEAD_BYTES:
            self.behind = True
            return
        self._queue.put_nowait(event)
        self._passed(event)

    async def put(self, event: Event) -> None:
        """Queue an event from the reader's own feed, which goes no faster than it reads."""
        if self.job in (None, event.job) and event.seq > self.position.seq:
            while self._held > READ_AHEAD_BYTES:
                self._read.clear()
                await self._read.wait()
            await self._queue.put(event)
            self._passed(event)

    async def get(self) -> Event:
        """The next event.

        Raises:
            ClientError: what `fail` was called with, once the events from before are read.
        """
        if self._failure is not None and self._queue.empty():
            raise self._failure
        event = await self._queue.get()
        if event is None:
            assert self._failure is not None, "only fail() queues None"
            raise self._failure
        self._held -= _size(event)
        self._read.set()
        return event

    def fail(self, failure: ClientError) -> None:
        self._failure = failure
        if self._queue.empty():
            self._queue.put_nowait(None)  # wakes `get`

    def _passed(self, event: Event) -> None:
        self._held += _size(event)
        self.position = Position(self.position.epoch, event.seq)


def _size(event: Event) -> int:
    """Of what it carries; about a byte for a character."""
    return len(event.data.get("text") or event.data.get("data") or "") if event.type == "output" else 0
