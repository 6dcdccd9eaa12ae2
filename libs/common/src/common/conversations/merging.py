"""Full tails become sealed segments: merged with those before them, compressed as well as can be, in one step of the
store. Whoever dies half-way leaves what was there before."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Final

from common import subjects
from common.buckets import Change
from common.bus import Bus
from common.conversations.codec import SEALED_LEVEL, concatenated, count_of
from common.conversations.segments import (
    KEPT_FACTOR,
    SEALED_BYTES,
    Segment,
    Segments,
    UnreadableSegment,
    key_of,
)
from common.errors import Fenced, ServiceError
from common.log import get
from common.streams import CONVERSATIONS_BUCKET

_log = get(__name__)

WAITING_SESSIONS: Final = 1_000
"""Beyond it a session is left until it is written to again: nothing is lost but room."""


class Merging:
    def __init__(self, bus: Bus, segments: Segments) -> None:
        self._bus = bus
        self._segments = segments
        self._wanted: dict[str, tuple[float, bool]] = {}
        """By session: how long its conversation is kept, in seconds, and whether there is something to merge."""
        self._changed = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def want(self, session: str, ttl_s: float, *, full: bool) -> None:
        """A session is written to: its oldest segments may have to be kept for longer, full ones to be merged."""
        if session in self._wanted or len(self._wanted) < WAITING_SESSIONS:
            _, was_full = self._wanted.get(session, (0, False))
            self._wanted[session] = ttl_s, full or was_full
            self._idle.clear()
            self._changed.set()

    async def idle(self) -> None:
        await self._idle.wait()

    async def run(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            while self._wanted:
                session = next(iter(self._wanted))
                ttl_s, full = self._wanted.pop(session)
                try:
                    if full:
                        await self.merge(session, ttl_s)
                    await self.renew(session, ttl_s)
                except Fenced:
                    _log.info("segments not merged: written to meanwhile", session=session)
                except (ServiceError, UnreadableSegment) as exc:
                    _log.warning("segments not merged", session=session, reason=str(exc))
            self._idle.set()

    async def merge(self, session: str, ttl_s: float) -> None:
        """Merge the newest segment before the tail with as many before it as fit into one.

        Raises:
            UnreadableSegment: one of them cannot be read; nothing was changed.
            Fenced: if one was changed meanwhile; nothing was changed.
            StoreUnavailable
        """
        run = await self._run(session)
        if not run:
            return
        value = await self._segments.encoded(concatenated([each.plain for each in run]), SEALED_LEVEL)
        changes = [Change(key_of(session, run[0].first), value, run[0].revision, ttl_s * KEPT_FACTOR)]
        remember_s = self._bus.limits.conversation_memory_s
        changes += [Change(key_of(session, each.first), None, each.revision, remember_s) for each in run[1:]]
        await self._bus.replace_all(CONVERSATIONS_BUCKET, changes)

    async def renew(self, session: str, ttl_s: float) -> None:
        """Write again what would be gone before the conversation is: the store forgets a value, not a conversation.

        Raises:
            Fenced, StoreUnavailable: what is left is done at a later time.
        """
        written = self._bus.written(CONVERSATIONS_BUCKET, subjects.segments_of_session(session))
        async with aclosing(written) as oldest_first:
            async for entry, age_s in oldest_first:
                if age_s < ttl_s * (KEPT_FACTOR - 1):
                    return
                if entry.value is not None:
                    await self._bus.replace(
                        CONVERSATIONS_BUCKET, entry.key, entry.value, entry.revision, ttl_s * KEPT_FACTOR
                    )

    async def _run(self, session: str) -> list[Segment]:
        """The newest segment before the tail, behind as many of those before it as fit into one with it."""
        run: list[Segment] = []
        size = 0
        tail = (await self._segments.head(session)).tail
        for first in reversed(await self._segments.firsts(session)):
            found = 0 if first >= tail else await self._segments.read(session, first)
            if isinstance(found, int):
                continue
            if run and (size + len(found.plain) > SEALED_BYTES or found.first + count_of(found.plain) != run[0].first):
                break
            run.insert(0, found)
            size += len(found.plain)
        return run
