"""One message of a conversation as bytes: a map of whatever MCP or a chat model can say. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import msgpack

from common.schema import nearest

Message = dict[str, Any]
"""Ours have `role` (`user`, `assistant`, `tool`, `system`), `content` (text, or a list of parts as in MCP) and
`time_ms`; others are kept as they are."""

_PART: Final = 1
"""msgpack's extension type of a part: no map of a message can be mistaken for one."""


@dataclass(frozen=True)
class Part:
    """Stands for a text or bytes too large to stand in a message: an object of the session's in the store."""

    object: str
    form: Literal["text", "bytes"]
    size: int
    sha256: str
    start: str
    """The first characters of a text, so that a reader need not fetch it to know what it is."""


def pack_message(message: Message) -> bytes:
    """Numbers and characters that msgpack cannot say become the nearest that it can."""
    try:
        packed: bytes = msgpack.packb(message, default=_extension)
    except (ValueError, OverflowError):
        packed = msgpack.packb(nearest(message), default=_extension)
    return packed


def unpacked(raw: bytes) -> Any:
    return msgpack.unpackb(raw, strict_map_key=False, ext_hook=_part)


def _extension(value: Any) -> msgpack.ExtType:
    if isinstance(value, Part):
        return msgpack.ExtType(_PART, msgpack.packb(asdict(value)))
    raise TypeError(f"a message cannot hold a {type(value).__name__}")


def _part(code: int, data: bytes) -> Any:
    if code != _PART:
        raise ValueError(f"unknown extension {code}")
    return Part(**msgpack.unpackb(data))
