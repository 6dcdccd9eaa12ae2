"""The segments of one conversation as the store has them: listed, read, decoded."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final

from common import metrics, subjects
from common.buckets import Change
from common.bus import Bus
from common.conversations.codec import FAST_LEVEL, SegmentFault, decode, dictionary_of, encode
from common.conversations.dictionaries import DictionaryStore
from common.streams import CONVERSATIONS_BUCKET

IN_PLACE_BYTES: Final = 32 * 1024
"""A value above this is unpacked in a thread."""
HEAD: Final = 0
"""Where a segment's first number stands in the key of the head."""
TAIL_BYTES: Final = 32 * 1024
"""A segment of this many plain bytes takes no more messages: the next one begins another."""
SEALED_BYTES: Final = 256 * 1024
"""Plain bytes of a sealed segment at most, unless it is one write that has more."""
KEPT_FACTOR: Final = 1.5
"""A value is kept for that much longer than its conversation, and written again before the difference is over."""


@dataclass(frozen=True)
class Fault:
    """Why a part of a conversation could not be read; nothing of it was changed."""

    key: str
    revision: int
    """0 where there is no such key."""
    reason: str

    def as_dict(self) -> dict[str, Any]:
        return {"key": self.key, "revision": self.revision, "reason": self.reason}


@dataclass(frozen=True)
class Segment:
    """A run of messages with numbers from `first` on."""

    first: int
    revision: int
    plain: bytes
    """The array of its messages (common.conversations.codec)."""
    stored_bytes: int
    format: int


@dataclass(frozen=True)
class Head:
    """Of a conversation. Its revision stands for all that is before the tail: who begins a segment or takes messages
    back writes it in the same step, so that no other can do so behind an end that is none any more."""

    tail: int
    """Number of the tail's first message."""
    revision: int

    def change(self, session: str, tail: int, kept_s: float) -> Change:
        return Change(key_of(session, HEAD), str(tail).encode(), self.revision, kept_s)


class UnreadableSegment(Exception):
    """A segment is there and cannot be read."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        super().__init__(fault.reason)


class Segments:
    def __init__(self, bus: Bus, dictionaries: DictionaryStore, *, compress: bool) -> None:
        self._bus = bus
        self._dictionaries = dictionaries
        self._compress = compress

    async def firsts(self, session: str) -> list[int]:
        """Of every segment the number of its first message, in order. A few may be deleted already."""
        keys = await self._bus.keys(CONVERSATIONS_BUCKET, subjects.segments_of_session(session))
        return sorted(first for key in keys if (first := int(key.rsplit(".", 1)[-1])) != HEAD)

    async def head(self, session: str) -> Head:
        """Where the tail is, or would begin."""
        entry = await self._bus.get(CONVERSATIONS_BUCKET, key_of(session, HEAD))
        if entry.value is not None and entry.value.isdigit():
            return Head(int(entry.value), entry.revision)
        # None yet, or none any more: what is there tells it.
        return Head(max(await self.firsts(session), default=1), entry.revision)

    async def read(self, session: str, first: int) -> Segment | int:
        """The segment; of one that is not there (any more), the revision behind which it could be made.

        Raises:
            UnreadableSegment
            StoreUnavailable
        """
        key = key_of(session, first)
        entry = await self._bus.get(CONVERSATIONS_BUCKET, key)
        if entry.value is None:
            return entry.revision
        value = entry.value
        if version := dictionary_of(value):
            await self._dictionaries.load(version)
        try:
            if len(value) > IN_PLACE_BYTES:
                plain = await asyncio.to_thread(decode, value, self._dictionaries.known)
            else:
                plain = decode(value, self._dictionaries.known)
        except SegmentFault as exc:
            raise UnreadableSegment(Fault(key, entry.revision, str(exc))) from exc
        return Segment(first, entry.revision, plain, len(value), value[0])

    async def encoded(self, plain: bytes, level: int) -> bytes:
        """The value to write. Above FAST_LEVEL it is made in a thread."""
        if not self._compress:
            value = encode(plain, None, None)
        else:
            dictionary = await self._dictionaries.newest()
            if level > FAST_LEVEL:
                value = await asyncio.to_thread(encode, plain, level, dictionary)
            else:
                value = encode(plain, level, dictionary)
        metrics.CONVERSATION_PLAIN_BYTES.inc(len(plain))
        metrics.CONVERSATION_STORED_BYTES.inc(len(value))
        return value


def key_of(session: str, first: int) -> str:
    return subjects.segment_key(session, f"{first:010d}")
