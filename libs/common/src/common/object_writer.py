"""Writing one object: chunks are sent ahead of their acknowledgements, within a window."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import nats.js.errors
import zstandard

from common import headers, subjects
from common.errors import ArtifactStoreFull, StoreUnavailable
from common.log import get
from common.nats_connection import STORE_FULL, translated
from common.object_info import ObjectInfo
from common.output import Digest, Summary
from common.publisher import Acknowledgement, Publisher
from common.streams import ARTIFACTS_BUCKET

_log = get(__name__)

WINDOW_CHUNKS: Final = 16
"""Chunks on their way to the store at once, 2 MiB at most: what a job holds in memory while the store is behind."""
LEVEL: Final = 1
"""zstd's: on one core of the test machine 0.7 GB/s for log lines, to a quarter of their size; 9 GB/s for what cannot be
compressed, which it finds out at once."""
GIVE_UP_S: Final = 60.0
"""How long a store that is there may leave a chunk unanswered, as nats-server 2.15 does when its disk is full."""
RETRY_MIN_S: Final = 0.1
RETRY_MAX_S: Final = 5.0


@dataclass
class SentChunk:
    """A chunk on its way: `ObjectWriter.settle()` waits for it."""

    offset: int
    size: int
    """Bytes of its content."""
    frame: bytes
    """The content, compressed."""
    msg_id: str
    sent: Acknowledgement | None
    """None if it could not even be sent."""


class ObjectWriter:
    """Made by `ObjectStore.write_object()`.

    `put()` every chunk, `settle()` each in turn: two tasks may do so. What was put and not settled is at most
    WINDOW_CHUNKS, then `put()` waits: so whoever produces them is slowed, instead of this process growing.
    """

    def __init__(
        self,
        publisher: Publisher,
        delete_chunk: Callable[[int], Awaitable[None]],
        connected: Callable[[], bool],
        object_id: str,
    ) -> None:
        self.object_id = object_id
        self.chunks = 0
        self.full = False
        """The store did not take a chunk: the object has a hole there, whatever was stored behind it."""
        self._put = 0
        self._packer = zstandard.ZstdCompressor(level=LEVEL)
        self._stored_digest = Digest()
        self._publisher = publisher
        self._delete_chunk = delete_chunk
        self._connected = connected
        self._subject = subjects.chunks_of_object(ARTIFACTS_BUCKET, object_id)
        self._room = asyncio.Semaphore(WINDOW_CHUNKS)
        self._last_seq = 0

    async def put(self, data: bytes) -> SentChunk:
        """Send a chunk. Waits while the window is full; a store that is away is left to `settle()`."""
        await self._room.acquire()
        chunk = SentChunk(self._put, len(data), self._packer.compress(data), _new_id(), None)
        self._put += len(data)
        self._stored_digest.update(chunk.frame)
        self.chunks += 1
        try:
            chunk.sent = await self._send(chunk)
        except StoreUnavailable:
            return chunk  # settle() sends it again, for as long as it takes
        return chunk

    async def settle(self, chunk: SentChunk) -> int:
        """The chunk's number, waiting out a store that is away; the chunks have to be settled in the order of `put()`.

        The numbers grow along the object. A chunk that had to be sent again comes behind those that were sent after it:
        these are removed then and stored once more.

        Raises:
            ArtifactStoreFull: if the store has no room for it.
            StoreUnavailable: if it did not take it for GIVE_UP_S, though it was there.
        """
        try:
            seq = await self._stored(chunk)
            while seq < self._last_seq:
                await self._remove(seq)
                chunk.msg_id, chunk.sent = _new_id(), None
                seq = await self._stored(chunk)
            self._last_seq = seq
        except (ArtifactStoreFull, StoreUnavailable):
            self.full = True
            raise
        finally:
            self._room.release()
        return seq

    def info(self, name: str, content: Summary, media_type: str) -> ObjectInfo:
        """What there is to know of the object when all is put; `content` is the summary of what was put."""
        return ObjectInfo(
            name=name,
            object_id=self.object_id,
            size=content.size,
            sha256=content.sha256,
            stored=self._stored_digest.summary(),
            chunks=self.chunks,
            media_type=media_type,
        )

    def abandon(self) -> None:
        """Nothing will be settled any more: whoever waits in `put()` goes on."""
        for _ in range(WINDOW_CHUNKS):
            self._room.release()

    async def _stored(self, chunk: SentChunk) -> int:
        wait_s = RETRY_MIN_S
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + GIVE_UP_S
        while True:
            try:
                if chunk.sent is None:
                    chunk.sent = await self._send(chunk)
                with translated("storing output"):
                    return await self._seq(chunk.sent)
            except StoreUnavailable as exc:
                _log.warning("output waits for the store", object=self.object_id, reason=exc.message)
                if not self._connected():
                    give_up_at = loop.time() + GIVE_UP_S  # what is away comes back
                elif loop.time() >= give_up_at:
                    raise
            chunk.sent = None  # the same id: what was stored after all is not stored twice
            await asyncio.sleep(wait_s * (0.5 + random.random()))
            wait_s = min(wait_s * 2, RETRY_MAX_S)

    async def _seq(self, sent: Acknowledgement) -> int:
        try:
            return await sent.seq()
        except nats.js.errors.APIError as exc:
            if exc.err_code == STORE_FULL:
                raise ArtifactStoreFull from exc
            raise

    async def _send(self, chunk: SentChunk) -> Acknowledgement:
        message_headers = {headers.MSG_ID: chunk.msg_id, headers.OFFSET: str(chunk.offset)}
        with translated("storing output"):
            return await self._publisher.send(self._subject, chunk.frame, message_headers)

    async def _remove(self, seq: int) -> None:
        wait_s = RETRY_MIN_S
        while True:
            try:
                return await self._delete_chunk(seq)
            except StoreUnavailable as exc:
                _log.warning("output waits for the store", object=self.object_id, reason=exc.message)
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, RETRY_MAX_S)


def _new_id() -> str:
    return secrets.token_hex(12)
