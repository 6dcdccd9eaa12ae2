"""Artifacts as a worker leaves them in the object store."""

from __future__ import annotations

import hashlib
import random
from typing import Final

from common import subjects
from common.artifacts import artifact_name
from common.bus import Bus
from common.object_info import ObjectInfo
from common.output import OUTPUT_CHUNK_BYTES, Summary

TEXT: Final = "text/plain; charset=utf-8"
BODY: Final = random.Random(1).randbytes(3 * OUTPUT_CHUNK_BYTES + 77)
LARGE: Final = random.Random(2).randbytes(8 * 1024 * 1024)
"""More than sockets and one read of the store hold, so that a download of it lasts."""


async def store(bus: Bus, session: str, body: bytes = BODY, stream: str = "stdout", media_type: str = TEXT) -> str:
    """An artifact as a worker leaves it; its job."""
    job = subjects.new_job_id()
    await store_for(bus, session, job, body, stream, media_type)
    return job


async def store_for(bus: Bus, session: str, job: str, body: bytes, stream: str, media_type: str) -> ObjectInfo:
    writer = bus.write_object(subjects.new_object_id(session, job, stream))
    # Of different sizes, as a tool's writes are.
    for start in range(0, len(body), OUTPUT_CHUNK_BYTES - 11):
        await writer.settle(await writer.put(body[start : start + OUTPUT_CHUNK_BYTES - 11]))
    content = Summary(len(body), hashlib.sha256(body).hexdigest())
    info = writer.info(artifact_name(session, job, stream), content, media_type)
    await bus.name_object(info)
    return info
