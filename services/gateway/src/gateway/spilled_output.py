"""Output that stands in the object store, put back into the events that name it."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from common.allowance import Share
from common.errors import StoreUnavailable
from common.feed import StoredEvent
from common.log import get
from common.object_store import READ_BATCH, READ_BATCH_BYTES, Chunk
from common.output import as_text
from gateway.store import Store

_log = get(__name__)

RETRY_S: Final = 0.25
OBJECTS_AHEAD: Final = 4
"""Streams that are read ahead at once: those of a job, of some jobs that take turns."""


class SpilledOutput:
    """For one client that follows one session: what it reads ahead is held by the connection's share."""

    def __init__(self, store: Store, session: str, share: Share) -> None:
        self._store = store
        self._session = session
        self._share = share
        self._ahead: dict[str, deque[Chunk]] = {}
        """By object, the one used last at the end."""

    async def filled(self, stored: StoredEvent) -> StoredEvent:
        """The event with the bytes of the chunk that it names, as every other output event has them.

        Waits while the store is away. Where the chunk is gone (it expired, or was removed) `lost` tells so.
        """
        data = stored.event.data
        if stored.event.type != "output" or "chunk" not in data:
            return stored
        chunk = await self._chunk(data["object"], data["chunk"])
        told = {"stream": data["stream"], "offset": data["offset"]}
        if chunk is None:
            told |= {"size": data["size"], "lost": True}
        else:
            text = as_text(chunk.content())
            told |= {"text": text} if isinstance(text, str) else {"data": text}
        return StoredEvent(stored.seq, stored.event.model_copy(update={"data": told}))

    async def _chunk(self, object_id: str, seq: int) -> Chunk | None:
        """From what was read ahead: the chunks of an object are asked for in their order."""
        ahead = self._ahead.pop(object_id, deque())
        while ahead and ahead[0].seq < seq:
            self._drop(ahead)
        if not ahead or ahead[0].seq != seq:
            while ahead:
                self._drop(ahead)
            chunk, ahead = await self._read(object_id, seq)
        else:
            chunk = self._drop(ahead)
        if ahead:
            self._ahead[object_id] = ahead
            if len(self._ahead) > OBJECTS_AHEAD:
                unused = self._ahead.pop(next(iter(self._ahead)))
                while unused:
                    self._drop(unused)
        return chunk

    def _drop(self, ahead: deque[Chunk]) -> Chunk:
        chunk = ahead.popleft()
        self._share.give(len(chunk.frame))
        return chunk

    async def _read(self, object_id: str, seq: int) -> tuple[Chunk | None, deque[Chunk]]:
        """The chunk, and those behind it as far as the connection has room for them."""
        room = self._share.try_take(READ_BATCH_BYTES)
        found: list[Chunk] = []
        try:
            found = await self._patiently(object_id, seq, READ_BATCH if room else 1)
        finally:
            if room:
                self._share.give(READ_BATCH_BYTES)
        ahead = deque[Chunk]()
        for chunk in found[1:]:
            if not self._share.try_take(len(chunk.frame)):
                break
            ahead.append(chunk)
        return (found[0] if found else None), ahead

    async def _patiently(self, object_id: str, seq: int, at_most: int) -> list[Chunk]:
        while True:
            try:
                return await self._store.bus.chunks_from(object_id, seq, at_most=at_most)
            except StoreUnavailable as exc:
                _log.info("output waits for the store", session=self._session, reason=exc.message)
            await asyncio.sleep(RETRY_S)
