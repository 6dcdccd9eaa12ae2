"""Objects of any size in JetStream's object store (NATS ADR-20): written with a window, read chunk by chunk.

nats-py's own object store writes one chunk at a time and reads through a consumer. What is written here can be read by
`nats object get artifacts <name>`, and unpacked by `zstd -d`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Final, NamedTuple

import nats.js.errors
import zstandard

from common import headers, subjects
from common.buckets import Buckets
from common.errors import StoreUnavailable
from common.nats_connection import translated
from common.object_info import ObjectInfo
from common.object_writer import ObjectWriter
from common.output import OUTPUT_CHUNK_BYTES
from common.streams import ARTIFACTS, ARTIFACTS_BUCKET

READ_BATCH_BYTES: Final = 512 * 1024
"""What one read of an object takes from the store."""
READ_BATCH: Final = 64
"""And how many chunks: a slow producer's are small."""
LAG_S: Final = 2.0
"""How long a replica that is asked for a chunk may be behind the store's leader."""
LAG_RETRY_S: Final = 0.05

_unpacker: Final = zstandard.ZstdDecompressor()


class PartLost(StoreUnavailable):
    """The store answers, and has a part of the object no more: it expired, or its session was closed."""


class Chunk(NamedTuple):
    """A piece of an object, and its number in the store, which grows along the object."""

    seq: int
    offset: int
    """Bytes of the content that come before it."""
    frame: bytes
    """As it is stored: many times smaller than its content where that is text."""

    def content(self) -> bytes:
        """At most OUTPUT_CHUNK_BYTES."""
        return _unpacker.decompress(self.frame, max_output_size=OUTPUT_CHUNK_BYTES)


class ObjectStore(Buckets):
    """A connection with the bucket `artifacts`."""

    def write_object(self, object_id: str) -> ObjectWriter:
        """A new object, whose chunks are put one after the other. What an id had before stays before it."""
        return ObjectWriter(self._publisher, self._delete_chunk, lambda: self.connected, object_id)

    async def name_object(self, info: ObjectInfo) -> None:
        """Have an object found by its name.

        Raises:
            StoreUnavailable: if the store did not confirm, or has no room.
        """
        subject = subjects.object_info(ARTIFACTS_BUCKET, info.name)
        with translated(f"naming object {info.name}"):
            await (await self._publisher.send(subject, info.encode(), {headers.ROLLUP: "sub"})).seq()

    async def object_info(self, name: str) -> ObjectInfo | None:
        """None if there is none: never was, expired, or its session was closed."""
        subject = subjects.object_info(ARTIFACTS_BUCKET, name)

        async def read() -> ObjectInfo | None:
            try:
                msg = await self._reads.get_last_msg(ARTIFACTS, subject, direct=self.one_replica)
            except nats.js.errors.NotFoundError:
                return None
            return ObjectInfo.decode(msg.data or b"")

        return await self.patiently(f"reading object {name}", read)

    async def read_chunks(self, object_id: str, first: int = 0, *, at_most: int = READ_BATCH) -> list[Chunk]:
        """The object's chunks from number `first` on, about READ_BATCH_BYTES of them; none behind its end.

        Any replica may answer, also one that is behind: see `chunks_from()`.
        """
        request = {
            "seq": max(first, 1),
            "next_by_subj": subjects.chunks_of_object(ARTIFACTS_BUCKET, object_id),
            "batch": at_most,
            "max_bytes": READ_BATCH_BYTES,
        }
        found = (await self._direct_get_batch(ARTIFACTS, request)).found
        return [Chunk(seq, int((msg.headers or {})[headers.OFFSET]), msg.data) for seq, msg in found]

    async def chunks_from(self, object_id: str, seq: int, *, at_most: int = READ_BATCH) -> list[Chunk]:
        """The chunk with this number, which somebody has seen stored, and those behind it; empty if it is gone."""
        found = await self._chunks_behind(object_id, seq, at_most)
        return found if found and found[0].seq == seq else []

    async def _chunks_behind(self, object_id: str, seq: int, at_most: int = READ_BATCH) -> list[Chunk]:
        """Those with number `seq` and above, where the caller knows that there are some; empty if they are gone."""
        give_up_at = asyncio.get_running_loop().time() + (0 if self.one_replica else LAG_S)
        while True:
            found = await self.read_chunks(object_id, seq, at_most=at_most)
            if found or asyncio.get_running_loop().time() >= give_up_at:
                return found
            await asyncio.sleep(LAG_RETRY_S)

    async def read_object(self, info: ObjectInfo, start: int, end: int) -> AsyncGenerator[bytes]:
        """The bytes from offset `start` up to `end`.

        Raises:
            PartLost: if a part is gone.
            StoreUnavailable: if the store does not answer.
        """
        chunk = await self._chunk_at(info.object_id, start)
        seq, offset = (chunk.seq, chunk.offset) if chunk else (0, 0)
        while offset < end:
            found = await self._chunks_behind(info.object_id, seq)
            if not found or found[0].offset > offset:
                raise PartLost(f"object {info.name} is not stored any more from byte {offset} on")
            for chunk in found:
                if chunk.offset < offset:
                    continue  # stored twice: the store was away for longer than it remembers ids
                content = chunk.content()
                yield content[max(0, start - offset) : end - offset]
                offset += len(content)
                if offset >= end:
                    return
            seq = found[-1].seq + 1

    async def _chunk_at(self, object_id: str, offset: int) -> Chunk | None:
        """The chunk that holds byte `offset`: found by halving, as chunks differ in size. None if there is none."""
        first = await self.read_chunks(object_id, at_most=1)
        if not first or offset < len(first[0].content()):
            return first[0] if first else None
        known = first[0]
        low, high = known.seq + 1, (await self._last_chunk_seq(object_id)) + 1
        while low < high:
            middle = (low + high) // 2
            found = await self.read_chunks(object_id, middle, at_most=1)
            if not found or found[0].offset > offset:
                high = middle
            else:
                known = found[0]
                low = known.seq + 1
        return known

    async def _last_chunk_seq(self, object_id: str) -> int:
        subject = subjects.chunks_of_object(ARTIFACTS_BUCKET, object_id)
        found = await self._last_stored(ARTIFACTS, [subject])
        return found[0][0] if found else 0

    async def purge_object(self, object_id: str) -> None:
        """Remove an object's chunks."""
        await self._purge_chunks(object_id)

    async def purge_objects(self, session: str) -> None:
        """Remove the chunks of all objects of a session."""
        await self._purge_chunks(subjects.all_objects_of_session(session))

    async def _purge_chunks(self, object_ids: str) -> None:
        subject = subjects.chunks_of_object(ARTIFACTS_BUCKET, object_ids)
        with translated("removing an object"):
            await self._js.purge_stream(ARTIFACTS, subject=subject)

    async def _delete_chunk(self, seq: int) -> None:
        with translated("removing a chunk"):
            try:
                await self._js.delete_msg(ARTIFACTS, seq)
            except nats.js.errors.APIError:
                return  # gone already
