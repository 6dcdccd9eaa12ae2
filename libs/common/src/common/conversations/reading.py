"""Conversations read in pages: each message once while segments are merged, the readable rest where one is broken."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final

from common.conversations.codec import SegmentFault, count_of, messages_of
from common.conversations.message import Message
from common.conversations.segments import Fault, Segment, Segments, UnreadableSegment, key_of
from common.output import estimated_bytes

PAGE_BYTES: Final = 1024**2
"""Memory of the messages of one page, unless its last one has more."""


@dataclass(frozen=True)
class Numbered:
    """A message and its place in the conversation, from 1."""

    number: int
    message: Message


@dataclass
class Page:
    messages: list[Numbered] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    more: bool = False
    """There are messages behind the last one of these."""


@dataclass
class Stats:
    messages: int = 0
    """As many as can be read."""
    segments: int = 0
    stored_bytes: int = 0
    plain_bytes: int = 0
    formats: Counter[int] = field(default_factory=Counter)
    """Segments by format byte."""
    faults: list[Fault] = field(default_factory=list)


class ConversationReader:
    """Safe for use by all tasks of a process."""

    def __init__(self, segments: Segments) -> None:
        self._segments = segments

    async def messages(self, session: str, *, after: int = 0, limit: int = 100, max_bytes: int = PAGE_BYTES) -> Page:
        """At most `limit` messages with numbers above `after`, and no more behind about `max_bytes` of them in memory.
        Only their segments are read.

        Raises:
            StoreUnavailable
        """
        page = Page()
        size = 0
        async with aclosing(self.export(session, after=after)) as found:
            async for item in found:
                if isinstance(item, Fault):
                    page.faults.append(item)
                elif len(page.messages) < limit and size < max_bytes:
                    page.messages.append(item)
                    size += estimated_bytes(item.message)
                else:
                    page.more = True
                    break
        return page

    async def export(self, session: str, *, after: int = 0) -> AsyncGenerator[Numbered | Fault]:
        """Every message with a number above `after`, each once, and what could not be read, in order.

        A segment at a time is held. Segments are merged meanwhile: numbers tell which messages were seen.
        """
        async with aclosing(self._walk(session, after)) as segments:
            async for found in segments:
                if isinstance(found, Fault):
                    yield found
                    continue
                segment, skip = found
                try:
                    messages = messages_of(segment.plain)
                except SegmentFault as exc:
                    yield Fault(key_of(session, segment.first), segment.revision, str(exc))
                    continue
                for number, message in enumerate(messages[skip:], segment.first + skip):
                    yield Numbered(number, message)

    async def _walk(self, session: str, after: int) -> AsyncGenerator[tuple[Segment, int] | Fault]:
        """The segments behind number `after` in order, each with how many of its messages were in one before it."""
        expected = after + 1
        listed_for = -1
        pending: list[int] = []
        excused = False
        """A fault was told: the messages up to the next segment are known to be missing."""
        told: set[str] = set()
        while True:
            if not pending:
                if listed_for == expected:
                    return
                listed_for = expected
                firsts = await self._segments.firsts(session)
                pending = firsts[max(0, await self._start(session, firsts, expected)) :]
                if not pending:
                    return
            first = pending.pop(0)
            try:
                found = await self._segments.read(session, first)
            except UnreadableSegment as exc:
                if exc.fault.key not in told:
                    yield exc.fault
                told.add(exc.fault.key)
                excused = True
                continue
            if isinstance(found, int):
                continue
            if first > expected and not excused:
                if listed_for != expected:
                    pending = []  # merged into an earlier one since the listing: look again
                    continue
                yield Fault(key_of(session, expected), 0, f"messages {expected} to {first - 1} are missing")
            excused = False
            skip = max(0, expected - first)
            if skip < count_of(found.plain):
                expected = first + count_of(found.plain)
                yield found, skip

    async def _start(self, session: str, firsts: list[int], expected: int) -> int:
        """Index of the segment that holds number `expected`: the last one that begins at it or before, and exists."""
        index = bisect_right(firsts, expected) - 1
        while index > 0:
            try:
                if not isinstance(await self._segments.read(session, firsts[index]), int):
                    return index
            except UnreadableSegment:
                return index
            index -= 1
        return index

    async def stats(self, session: str) -> Stats:
        """Reads the whole conversation, a segment at a time."""
        stats = Stats()
        async with aclosing(self._walk(session, 0)) as segments:
            async for found in segments:
                if isinstance(found, Fault):
                    stats.faults.append(found)
                    continue
                segment, skip = found
                stats.messages += count_of(segment.plain) - skip
                stats.segments += 1
                stats.stored_bytes += segment.stored_bytes
                stats.plain_bytes += len(segment.plain)
                stats.formats[segment.format] += 1
        return stats
