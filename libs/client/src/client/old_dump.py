"""The Redis dump of the old system: one JSON object a line, of which those of conversations are read. No network here.

A line is `{"key": "conversation:<session>", "value": …, "ttl": <seconds>}`. Its value is an array of messages, the JSON
text of one, or base64 of that text gzip'd. However large the file is, one line at a time is held.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

MAX_LINE_BYTES: Final = 32 * 1024**2
MAX_UNPACKED_BYTES: Final = 16 * 1024**2
"""What a gzip'd value may unpack to; so much and no more is unpacked."""
MAX_TTL_S: Final = 10 * 365 * 86_400.0
"""What the gateway takes at most."""
_KEY: Final = "conversation:"
_SESSION: Final = re.compile(r"(?!_)[A-Za-z0-9_-]{1,64}")
_MAGIC: Final = b"\x1f\x8b"
_GZIP: Final = 31
_PIECE_BYTES: Final = 64 * 1024
_SHOWN_CHARS: Final = 100


@dataclass(frozen=True, slots=True)
class OldConversation:
    line: int
    session: str
    messages: list[dict[str, Any]]
    sizes: list[int]
    """Bytes of each message as JSON."""
    ttl_s: float | None
    """How long it is kept from now on; None where the dump does not say."""


@dataclass(frozen=True, slots=True)
class OtherKey:
    """A line that is of no conversation."""

    line: int


@dataclass(frozen=True, slots=True)
class BadLine:
    line: int
    reason: str


Item = OldConversation | OtherKey | BadLine


class _Bad(Exception):
    """A line cannot be read; the message says why."""


def read(source: BinaryIO) -> Iterator[Item]:
    """What each line of a dump says, in order; empty ones say nothing. The dump may be gzip'd: its first bytes tell.

    Where the file itself cannot be read any further, the last item is a BadLine that says so.
    """
    number = 0
    try:
        for line in _lines(source):
            number += 1
            if line is None:
                yield BadLine(number, f"it has more than {MAX_LINE_BYTES:,} bytes")
            elif not line.isspace():
                yield _item(number, line)
    except (OSError, EOFError, zlib.error) as exc:
        yield BadLine(number + 1, f"the file cannot be read from here on: {exc}")


class _Rejoined(io.RawIOBase):
    """A stream of which the first bytes were looked at."""

    def __init__(self, first: bytes, rest: BinaryIO) -> None:
        self._first = first
        self._rest: Any = rest  # BinaryIO does not name read1, which every buffered one has

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._first or self._rest.read1(len(buffer))  # what is there: a pipe may be silent after it
        taken, self._first = piece[: len(buffer)], piece[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)


def _lines(source: BinaryIO) -> Iterator[bytes | None]:
    """Every line; None in the place of one that is too long, of which nothing is kept."""
    first = source.read(len(_MAGIC))
    whole: Any = io.BufferedReader(_Rejoined(first, source), _PIECE_BYTES)
    plain = gzip.GzipFile(fileobj=whole) if first == _MAGIC else whole
    while line := plain.readline(MAX_LINE_BYTES + 1):
        if len(line) <= MAX_LINE_BYTES or line.endswith(b"\n"):
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = plain.readline(_PIECE_BYTES)
        yield None


def _item(number: int, line: bytes) -> Item:
    try:
        found = _json(line, "it")
        if not isinstance(found, dict) or not isinstance(found.get("key"), str):
            raise _Bad("it is no object with a key")
        key = found["key"]
        if not key.startswith(_KEY):
            return OtherKey(number)
        session = key[len(_KEY) :]
        if not _SESSION.fullmatch(session):
            raise _Bad(
                f"the session id {_shown(session)} cannot be one here: it must be 1-64 letters, digits, - or _,"
                " and not begin with _"
            )
        ttl_s = _ttl(found.get("ttl"))
        messages = _messages(found.get("value"))
        return OldConversation(number, session, messages, _sizes(messages), ttl_s)
    except _Bad as exc:
        return BadLine(number, str(exc))


def _messages(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, str):
        is_json = value.lstrip()[:1] == "["
        value = _json(value if is_json else _unpacked(value), "its value")
    if not isinstance(value, list):
        raise _Bad("its value is no array of messages")
    for number, message in enumerate(value, 1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise _Bad(f"message {number} is no object with a role")
    return value


def _unpacked(text: str) -> bytes:
    try:
        packed = base64.b64decode("".join(text.split()), validate=True)
    except ValueError as exc:
        raise _Bad("its value is no array of messages, no JSON text of one and no base64") from exc
    if not packed.startswith(_MAGIC):
        raise _Bad("its value is base64, but not of gzip'd JSON")
    unpacker = zlib.decompressobj(_GZIP)
    try:
        plain = unpacker.decompress(packed, MAX_UNPACKED_BYTES + 1)
    except zlib.error as exc:
        raise _Bad(f"its value is corrupt gzip: {exc}") from exc
    if len(plain) > MAX_UNPACKED_BYTES:
        raise _Bad(f"its value unpacks to more than {MAX_UNPACKED_BYTES:,} bytes")
    if not unpacker.eof:
        raise _Bad("its value is corrupt gzip: it ends too early")
    if unpacker.unused_data:
        raise _Bad("its value is corrupt gzip: bytes follow its end")
    return plain


def _sizes(messages: list[dict[str, Any]]) -> list[int]:
    """Also makes sure that they can be sent: half a surrogate pair and an infinite number cannot."""
    sizes = []
    for number, message in enumerate(messages, 1):
        try:
            sizes.append(len(_encoder.encode(message).encode()))
        except (ValueError, RecursionError) as exc:
            raise _Bad(f"message {number} cannot be said in JSON: {exc}") from exc
    return sizes


def _ttl(value: Any) -> float | None:
    """Redis says -1 where a key does not expire; the time that is left is never under a second here."""
    if value is None or value == -1:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise _Bad("its ttl is no number of seconds, nor -1")
    return max(1.0, min(value, MAX_TTL_S))


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


_decoder: Final = json.JSONDecoder(parse_constant=_refuse_constant)
_encoder: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _json(text: str | bytes, what: str) -> Any:
    try:
        return _decoder.decode(text if isinstance(text, str) else text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as exc:
        raise _Bad(f"{what} is not JSON: {exc}") from exc


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…")
