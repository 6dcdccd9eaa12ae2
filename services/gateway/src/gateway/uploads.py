"""A file on its way to a container: streamed into the object store, bounded, before its job is accepted."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import suppress
from typing import Final

from common import subjects
from common.artifacts import upload_name
from common.bus import Bus
from common.errors import PayloadTooLarge, StoreUnavailable
from common.object_info import ObjectInfo
from common.object_writer import WINDOW_CHUNKS, ObjectWriter, SentChunk
from common.output import chunks, process

STORED_WITHIN_S: Final = 15.0
"""How long the store may take for one chunk before the upload is given up."""


async def store_upload(bus: Bus, session: str, job: str, content: AsyncIterable[bytes], limit: int) -> ObjectInfo:
    """Keep what comes; nothing of it is kept if this raises.

    Raises:
        PayloadTooLarge: as soon as more than `limit` bytes have come.
        ArtifactStoreFull, StoreUnavailable
    """
    writer = bus.write_object(subjects.new_object_id(session, job, "upload"))
    sent: deque[SentChunk] = deque()

    async def put(chunk: bytes) -> None:
        if len(sent) == WINDOW_CHUNKS:
            await _settle(writer, sent.popleft())
        sent.append(await writer.put(chunk))

    try:
        summary = await process(chunks(_bounded(content, limit)), put)
        while sent:
            await _settle(writer, sent.popleft())
        info = writer.info(upload_name(session, job), summary, "application/octet-stream")
        await bus.name_object(info)
    except BaseException:
        await drop_upload(bus, writer.object_id)
        raise
    return info


async def drop_upload(bus: Bus, object_id: str) -> None:
    """Remove an upload that no job will fetch; where the store does not answer it is left to expire."""
    with suppress(StoreUnavailable):
        await bus.purge_object(object_id)


async def _settle(writer: ObjectWriter, chunk: SentChunk) -> None:
    try:
        async with asyncio.timeout(STORED_WITHIN_S):
            await writer.settle(chunk)
    except TimeoutError as exc:
        raise StoreUnavailable(f"the store did not take a part of the file within {STORED_WITHIN_S:g} s") from exc


async def _bounded(content: AsyncIterable[bytes], limit: int) -> AsyncGenerator[bytes]:
    size = 0
    async for piece in content:
        size += len(piece)
        if size > limit:
            raise PayloadTooLarge(size, limit)
        yield piece
