"""Large parts of messages: kept as objects of the session's, named by the message."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from common import subjects
from common.bus import Bus
from common.conversations.message import Message, Part, pack_message
from common.object_info import ObjectInfo
from common.output import OUTPUT_CHUNK_BYTES, Digest

MAX_INLINE_BYTES: Final = 64 * 1024
"""A text or bytes of up to this size stands in its message."""
MAX_MESSAGE_BYTES: Final = 256 * 1024
"""A message above this, though none of its parts is large, is kept as one part."""
START_CHARS: Final = 200


async def packed(bus: Bus, session: str, message: Message) -> bytes:
    """A message as it is stored: at most MAX_MESSAGE_BYTES.

    Raises:
        ArtifactStoreFull, StoreUnavailable: if a part could not be kept.
    """
    bytes_ = pack_message(await _without_large(bus, session, message))
    if len(bytes_) <= MAX_MESSAGE_BYTES:
        return bytes_
    role = message.get("role")
    whole = await _kept(bus, session, bytes_, "bytes", "")
    return pack_message({"role": role if isinstance(role, str) and len(role) < START_CHARS else "", "packed": whole})


async def _without_large(bus: Bus, session: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: await _without_large(bus, session, item) for key, item in value.items()}
    if isinstance(value, list):
        return [await _without_large(bus, session, item) for item in value]
    if isinstance(value, bytes) and len(value) > MAX_INLINE_BYTES:
        return await _kept(bus, session, value, "bytes", "")
    if isinstance(value, str) and len(value) > MAX_INLINE_BYTES // 4:
        data = value.encode("utf-8", "replace")
        if len(data) > MAX_INLINE_BYTES:
            return await _kept(bus, session, data, "text", value[:START_CHARS])
    return value


async def _kept(bus: Bus, session: str, data: bytes, form: Any, start: str) -> Part:
    object_id = subjects.new_part_id(session)
    writer = bus.write_object(object_id)
    digest = Digest()
    for piece in _pieces(data):
        digest.update(piece)
        await writer.settle(await writer.put(piece))
    summary = digest.summary()
    await bus.name_object(writer.info(object_id, summary, "application/octet-stream"))
    return Part(object_id, form, summary.size, summary.sha256, start)


def _pieces(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), OUTPUT_CHUNK_BYTES):
        yield data[start : start + OUTPUT_CHUNK_BYTES]


async def content_of(bus: Bus, part: Part) -> str | bytes | None:
    """What a part stands for; None if the store does not have it any more.

    Raises:
        PartLost: if a piece of it is gone.
        StoreUnavailable: if the store does not answer.
    """
    info: ObjectInfo | None = await bus.object_info(part.object)
    if info is None:
        return None
    data = b"".join([piece async for piece in bus.read_object(info, 0, info.size)])
    return data.decode() if part.form == "text" else data
