"""The conversations of all sessions: messages added, read in pages, taken back; two writers at once lose nothing.

A conversation is a run of segments. The newest, its tail, is open until it has TAIL_BYTES: whether it is open is told
by its content alone, so that every writer decides alike, and the store's revisions decide between two. An append
writes the tail, whatever the length of the conversation; one that begins another tail writes the head too, in one step.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from common.buckets import Change
from common.bus import Bus
from common.conversations.codec import FAST_LEVEL, count_of, extended, joined, messages_of
from common.conversations.dictionaries import DictionaryStore
from common.conversations.merging import Merging
from common.conversations.message import Message, pack_message
from common.conversations.parts import packed
from common.conversations.reading import ConversationReader
from common.conversations.segments import (
    KEPT_FACTOR,
    TAIL_BYTES,
    Head,
    Segments,
    UnreadableSegment,
    key_of,
)
from common.conversations.training import train
from common.errors import (
    ConversationMoved,
    ConversationStoreFull,
    ConversationUnreadable,
    Fenced,
    StoreUnavailable,
)
from common.log import get
from common.nats_connection import STORE_FULL
from common.streams import CONVERSATIONS_BUCKET

_log = get(__name__)

MAX_WRITE_BYTES: Final = 256 * 1024
"""Messages that are added together are written together up to this size."""
KNOWN_TAILS: Final = 256
TRUSTED_S: Final = 60.0
"""How long what is known of a tail is used without a look: far below Limits.conversation_memory_s."""
APPEND_WITHIN_S: Final = 20.0
RETRY_S: Final = 0.2
MAX_CHANGES: Final = 500


@dataclass(frozen=True)
class _Tail:
    """The newest segment as this process knows it."""

    head: Head
    first: int
    revision: int
    plain: bytes
    next_revision: int
    """Behind which the segment after it would be made."""
    known_at: float

    @property
    def last(self) -> int:
        return self.first + count_of(self.plain) - 1


class Conversations(ConversationReader):
    """Safe for use by all tasks of a process. `run()` has to run beside: it merges what is full."""

    def __init__(self, bus: Bus, *, compress: bool) -> None:
        self._bus = bus
        self.dictionaries = DictionaryStore(bus)
        super().__init__(Segments(bus, self.dictionaries, compress=compress))
        self._merging = Merging(bus, self._segments)
        self._tails: OrderedDict[str, _Tail] = OrderedDict()

    async def run(self) -> None:
        """Merge full tails into sealed segments, off everybody's way. Runs until cancelled."""
        await self._merging.run()

    async def train_dictionary(self) -> int:
        """Make a dictionary of what is stored and write with it from now on; other processes do within half a minute.
        Returns its version. Takes seconds of a thread.

        Raises:
            TooFewMessages: if there is not enough stored.
            StoreUnavailable
        """
        return await train(self._bus, self._segments, self.dictionaries)

    async def merged(self) -> None:
        """Returns when nothing is left to merge of what was added so far."""
        await self._merging.idle()

    # --- adding ---------------------------------------------------------------------------------------

    async def append(
        self, session: str, messages: Sequence[Message], *, ttl_s: float, expected: int | None = None
    ) -> int:
        """Add messages, one at least; returns the number of the last. They are stored when this returns.

        The conversation is kept for `ttl_s` seconds from then on. With `expected` it must have exactly so many.

        Raises:
            ConversationMoved: if it has others than `expected`; nothing was added.
            ConversationUnreadable: if its tail cannot be read; nothing was added.
            ConversationStoreFull, ArtifactStoreFull: if there is no room.
            StoreUnavailable: if the store did not confirm: it may hold them or not.
        """
        ready = [await packed(self._bus, session, message) for message in messages]
        number = 0
        while batch := _first_batch(ready):
            number = await self._append(session, batch, ttl_s, expected)
            expected = number if expected is not None else None
            ready = ready[len(batch) :]
        return number

    async def _append(self, session: str, batch: list[bytes], ttl_s: float, expected: int | None) -> int:
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + APPEND_WITHIN_S
        while True:
            tail = self._known_tail(session)
            fresh_read = tail is None
            if tail is None:
                tail = await self._read_tail(session)
            if expected is not None and tail.last != expected:
                if fresh_read:
                    raise ConversationMoved(session, expected, tail.last)
                self._tails.pop(session, None)  # what is known may be out of date
                continue
            try:
                number = await self._write(session, tail, batch, ttl_s, give_up_at)
                if fresh_read:
                    self._merging.want(session, ttl_s, full=False)
                return number
            except Fenced:
                self._tails.pop(session, None)  # another writer was faster: behind its messages then
                if loop.time() >= give_up_at:
                    raise StoreUnavailable(f"the conversation of {session} changes too fast: try again") from None

    async def _write(self, session: str, tail: _Tail, batch: list[bytes], ttl_s: float, give_up_at: float) -> int:
        kept_s = ttl_s * KEPT_FACTOR
        changes: list[Change] = []
        first, revision, plain = tail.first, tail.revision, extended(tail.plain, batch)
        full = len(tail.plain) >= TAIL_BYTES
        if full:
            first, revision, plain = tail.last + 1, tail.next_revision, joined(batch)
        if full or not revision:
            changes.append(tail.head.change(session, first, kept_s))
        value = await self._segments.encoded(plain, FAST_LEVEL)
        changes.append(Change(key_of(session, first), value, revision, kept_s))
        revision = await self._stored(changes, give_up_at)
        # The head comes before the segment, in one step: their numbers follow one another.
        head = Head(first, revision - 1) if len(changes) > 1 else tail.head
        # As long as it is written to from here only, it is looked at again after TRUSTED_S all the same.
        written = _Tail(head, first, revision, plain, 0, tail.known_at)
        self._remember(session, written)
        if full:
            self._merging.want(session, ttl_s, full=True)
        return written.last

    async def _stored(self, changes: list[Change], give_up_at: float) -> int:
        """The new revision of the last. Repeated under the same id while nobody knows whether it was stored."""
        msg_id = secrets.token_hex(12)
        while True:
            try:
                return await self._bus.replace_all(CONVERSATIONS_BUCKET, changes, msg_id)
            except StoreUnavailable as exc:
                if exc.data.get("err_code") == STORE_FULL:
                    raise ConversationStoreFull from exc
                if asyncio.get_running_loop().time() >= give_up_at:
                    raise
                _log.info("a message waits for the store", key=changes[-1].key, reason=exc.message)
            await asyncio.sleep(RETRY_S)

    def _known_tail(self, session: str) -> _Tail | None:
        known = self._tails.get(session)
        if known is None or asyncio.get_running_loop().time() - known.known_at >= TRUSTED_S:
            return None
        return known

    async def _read_tail(self, session: str) -> _Tail:
        now = asyncio.get_running_loop().time()
        head = await self._segments.head(session)
        try:
            found = await self._segments.read(session, head.tail)
        except UnreadableSegment as exc:
            raise ConversationUnreadable(exc.fault.key, exc.fault.revision, exc.fault.reason) from exc
        if isinstance(found, int):
            return _Tail(head, head.tail, found, joined([]), 0, now)
        next_revision = 0
        if len(found.plain) >= TAIL_BYTES:
            behind = await self._bus.get(CONVERSATIONS_BUCKET, key_of(session, head.tail + count_of(found.plain)))
            next_revision = behind.revision
        return _Tail(head, head.tail, found.revision, found.plain, next_revision, now)

    def _remember(self, session: str, tail: _Tail) -> None:
        self._tails[session] = tail
        self._tails.move_to_end(session)
        if len(self._tails) > KNOWN_TAILS:
            self._tails.popitem(last=False)

    async def last_number(self, session: str) -> int:
        """Of the newest message; 0 if there is none.

        Raises:
            ConversationUnreadable
            StoreUnavailable
        """
        return (await self._read_tail(session)).last

    # --- taking back ----------------------------------------------------------------------------------

    async def truncate(self, session: str, after: int, *, ttl_s: float) -> None:
        """Forget every message with a number above `after`; segments that cannot be read go where they begin above it.

        Raises:
            ConversationUnreadable: if the segment that would be cut cannot be read; nothing was changed.
            StoreUnavailable: if the store did not confirm, or others write at it all the time.
        """
        give_up_at = asyncio.get_running_loop().time() + APPEND_WITHIN_S
        while True:
            self._tails.pop(session, None)
            changes = await self._cut(session, after, ttl_s)
            try:
                # The head goes first, the rest from the end: of what is too much for one step no part leaves a gap.
                for start in range(0, len(changes), MAX_CHANGES):
                    await self._bus.replace_all(CONVERSATIONS_BUCKET, changes[start : start + MAX_CHANGES])
                return
            except Fenced:
                if asyncio.get_running_loop().time() >= give_up_at:
                    raise StoreUnavailable(f"the conversation of {session} changes too fast: try again") from None
            finally:
                self._tails.pop(session, None)

    async def _cut(self, session: str, after: int, ttl_s: float) -> list[Change]:
        kept_s = ttl_s * KEPT_FACTOR
        head = await self._segments.head(session)
        changes: list[Change] = []
        for first in reversed(await self._segments.firsts(session)):
            key = key_of(session, first)
            if first > after:
                entry = await self._bus.get(CONVERSATIONS_BUCKET, key)
                if entry.value is not None:
                    changes.append(Change(key, None, entry.revision, self._bus.limits.conversation_memory_s))
                continue
            try:
                found = await self._segments.read(session, first)
            except UnreadableSegment as exc:
                raise ConversationUnreadable(key, exc.fault.revision, exc.fault.reason) from exc
            if isinstance(found, int):
                continue
            kept = after - first + 1
            if kept < count_of(found.plain):
                plain = joined([pack_message(message) for message in messages_of(found.plain)[:kept]])
                value = await self._segments.encoded(plain, FAST_LEVEL)
                changes.append(Change(key, value, found.revision, kept_s))
            return [head.change(session, first, kept_s), *changes]
        return [head.change(session, 1, kept_s), *changes]

    async def delete(self, session: str) -> None:
        """Forget the conversation, also what of it cannot be read. The large parts of its messages are the session's
        objects, and go with these.

        Raises:
            StoreUnavailable: if the store did not confirm; it may be repeated.
        """
        await self.truncate(session, 0, ttl_s=1)


def _first_batch(ready: list[bytes]) -> list[bytes]:
    """As many as are written together: one at least, if there is one."""
    size = 0
    for count, message in enumerate(ready):
        size += len(message)
        if count and size > MAX_WRITE_BYTES:
            return ready[:count]
    return ready
