"""What becomes of a job's output at its end: told in short, offered as artifacts, or removed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

from common.artifacts import artifact_name, artifact_uri
from common.bus import Bus
from common.ending import Ending
from common.errors import StoreUnavailable
from common.log import get
from common.object_info import ObjectInfo
from common.schema import Job, now_ms
from worker.output_stream import OutputLimits, OutputStream

_log = get(__name__)

RETRY_S: Final = 0.5
TRIES: Final = 20
"""How often an artifact is tried to be named: what the job did matters more than its download."""
MEDIA_TYPES: Final = {"result": "application/json", "file": "application/octet-stream"}


async def keep_output(
    bus: Bus, job: Job, limits: OutputLimits, streams: Iterable[OutputStream]
) -> dict[str, dict[str, Any]]:
    """`{<stream>: {size, sha256, artifact?: {uri, media_type, expires_ms}}}`: the terminal event's `output`."""
    told: dict[str, dict[str, Any]] = {}
    for stream in streams:
        summary = stream.summary()
        told[stream.name] = {"size": summary.size, "sha256": summary.sha256}
        writer = stream.writer
        if writer is not None and writer.full:
            await _purge(bus, writer.object_id)  # it has a hole, and others need the room
            continue
        if writer is None or not (job.artifact or summary.size > limits.offer):
            continue
        name = artifact_name(job.session, job.id, stream.name)
        info = writer.info(name, summary, _media_type(stream))
        if await _name(bus, info):
            told[stream.name]["artifact"] = {
                "uri": artifact_uri(job.session, job.id, stream.name),
                "media_type": info.media_type,
                "expires_ms": now_ms() + int(bus.limits.artifact_ttl_s * 1000),
            }
    return told


async def discard_output(bus: Bus, streams: Iterable[OutputStream]) -> None:
    """Remove what an attempt wrote that is void."""
    for stream in streams:
        if stream.writer is not None:
            await _purge(bus, stream.writer.object_id)


def with_links(ending: Ending, output: dict[str, dict[str, Any]]) -> Ending:
    """`ending`, its result with an MCP resource_link to each artifact."""
    links = [
        {
            "type": "resource_link",
            "uri": told["artifact"]["uri"],
            "name": name,
            "mimeType": told["artifact"]["media_type"],
            "size": told["size"],
        }
        for name, told in output.items()
        if "artifact" in told
    ]
    if not links or ending.result is None:
        return ending
    return replace(ending, result=ending.result | {"content": [*ending.result.get("content", []), *links]})


def _media_type(stream: OutputStream) -> str:
    plain = "text/plain; charset=utf-8" if stream.is_text else "application/octet-stream"
    return MEDIA_TYPES.get(stream.name, plain)


async def _name(bus: Bus, info: ObjectInfo) -> bool:
    for _ in range(TRIES):
        try:
            await bus.name_object(info)
            return True
        except StoreUnavailable as exc:
            _log.warning("artifact waits for the store", artifact=info.name, reason=exc.message)
        await asyncio.sleep(RETRY_S)
    return False


async def _purge(bus: Bus, object_id: str) -> None:
    try:
        await bus.purge_object(object_id)
    except StoreUnavailable as exc:
        _log.warning("output is left to expire", object=object_id, reason=exc.message)
