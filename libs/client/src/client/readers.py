"""Who reads which job, and the events of jobs that nobody reads yet.

The first events of a job may come before the answer to its `tools/call`. While such an answer is awaited,
events of unknown jobs are kept for it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from client.errors import ClientError
from client.event import Event, Position
from client.reader import Reader

EARLY_JOBS: Final = 64
"""Unknown jobs whose events are kept; a session with more at once reads the rest from the store."""

Tool = tuple[str, str]
"""Names of a server and of one of its tools."""


@dataclass(frozen=True, slots=True)
class _Early:
    """A job that may be of an unanswered call."""

    reader: Reader
    tool: Tool | None


class Readers:
    def __init__(self) -> None:
        self._readers: dict[str | None, list[Reader]] = {}
        self._early: dict[str, _Early] = {}
        self._early_dropped = False
        self._unanswered: Counter[Tool] = Counter()
        self._ambiguous: set[Tool] = set()
        """Tools of which several calls are, or just were, unanswered at once."""
        self._wanted: dict[Tool, asyncio.Future[Reader]] = {}
        self.gaps = 0
        """How often events of the session's connection were lost for good."""

    def __iter__(self) -> Iterator[Reader]:
        for readers in list(self._readers.values()):
            yield from list(readers)

    def offer(self, event: Event, epoch: str) -> None:
        """Give an event of the session's connection to whom it belongs."""
        for reader in self._readers.get(None, ()):
            reader.offer(event)
        known = self._readers.get(event.job)
        if known is None and self._unanswered.total():
            self._keep_early(event, epoch)
        for reader in known or ():
            reader.offer(event)

    def add(self, reader: Reader) -> Reader:
        self._readers.setdefault(reader.job, []).append(reader)
        return reader

    def remove(self, reader: Reader) -> None:
        readers = self._readers[reader.job]
        readers.remove(reader)
        if not readers:
            del self._readers[reader.job]
        if reader.feed is not None:
            reader.feed.cancel()

    def fail(self, failure: ClientError) -> None:
        for reader in self:
            reader.fail(failure)

    # --- calls without an answer yet ------------------------------------------------------------------

    @contextmanager
    def awaiting(self, tool: Tool) -> Iterator[None]:
        """While a call of `tool` is unanswered."""
        self._unanswered[tool] += 1
        if self._unanswered[tool] > 1:
            self._ambiguous.add(tool)
        try:
            yield
        finally:
            self._unanswered[tool] -= 1
            if not self._unanswered[tool]:
                self._ambiguous.discard(tool)
            if not self._unanswered.total():
                self._early.clear()
                self._early_dropped = False

    def claim(self, job: str, start: Position, *, passed: bool = False) -> Reader:
        """A reader of the job that an answer named, with what came of it before.

        Where events of it have `passed` and were not kept, they are read from the store.
        """
        early = self._early.pop(job, None)
        return self.add(early.reader if early else Reader(job, start, behind=passed or self._early_dropped))

    async def claim_lost(self, tool: Tool, timeout_s: float) -> Reader | None:
        """A reader of the job whose `tools/call` lost its answer, if events tell within `timeout_s` which it is.

        They do if no other call of that tool was unanswered meanwhile and one new job of it shows up.
        """
        if tool in self._ambiguous:
            return None
        found = [early.reader for early in self._early.values() if early.tool == tool]
        if not found:
            self._wanted[tool] = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(timeout_s):
                    found = [await self._wanted[tool]]
            except TimeoutError:
                return None
            finally:
                del self._wanted[tool]
        if len(found) > 1 or tool in self._ambiguous:
            return None
        (reader,) = found
        assert reader.job is not None
        return self.claim(reader.job, reader.position)

    def _keep_early(self, event: Event, epoch: str) -> None:
        early = self._early.get(event.job)
        if early is None:
            if len(self._early) >= EARLY_JOBS:
                self._early_dropped = True
                return
            reader = Reader(event.job, Position(epoch, event.seq - 1))
            # A job that was redriven is nobody's unanswered call.
            called = event.type == "queued" and "redrive_of" not in event.data
            tool = (event.data["server"], event.data["tool"]) if called else None
            early = self._early[event.job] = _Early(reader, tool)
            wanted = self._wanted.get(tool) if tool else None
            if wanted is not None and not wanted.done():
                wanted.set_result(reader)
        early.reader.offer(event)
