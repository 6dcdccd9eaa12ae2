"""The bytes of a segment: one format byte, then its messages. Pure.

Unpacked, a segment is one msgpack array with a five-byte head, so that a message is added by writing it behind the
others. Every format can be read at any time, mixed in one conversation; what is written follows the settings.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, Final

import msgpack
import zstandard

from common.conversations.message import Message, pack_message, unpacked

MAX_PLAIN_BYTES: Final = 1024**2
"""What a segment may unpack to: it is looked at before anything is allocated. Ours have about half of it at most."""
MAX_OLD_BYTES: Final = 16 * 1024**2
"""The same for a conversation of the old system, which is one gzip'd text of JSON."""
FAST_LEVEL: Final = 3
SEALED_LEVEL: Final = 19
_HEAD: Final = 5
_ARRAY32: Final = 0xDD
_GZIP: Final = 31


class Format(IntEnum):
    """The first byte of a value."""

    PLAIN = 0
    """A msgpack array of messages."""
    GZIP_JSON = 1
    """As the old system had them: a JSON array, gzip'd."""
    ZSTD = 2
    ZSTD_DICTIONARY = 3
    """The frame's own header names the dictionary's version."""


class SegmentFault(Exception):
    """A value cannot be read; the message says why."""


Dictionaries = Mapping[int, zstandard.ZstdCompressionDict]
"""By version."""


def joined(messages: Sequence[bytes]) -> bytes:
    """The array of packed messages."""
    return b"".join((bytes([_ARRAY32]), len(messages).to_bytes(4, "big"), *messages))


def extended(plain: bytes, messages: Sequence[bytes]) -> bytes:
    """The array with more messages behind its own."""
    return concatenated([plain, joined(messages)])


def concatenated(arrays: Sequence[bytes]) -> bytes:
    """One array of the messages of several, in order."""
    count = sum(count_of(plain) for plain in arrays)
    return b"".join((bytes([_ARRAY32]), count.to_bytes(4, "big"), *(plain[_HEAD:] for plain in arrays)))


def count_of(plain: bytes) -> int:
    return int.from_bytes(plain[1:_HEAD], "big")


def messages_of(plain: bytes) -> list[Message]:
    """
    Raises:
        SegmentFault: if it is no array of maps.
    """
    try:
        found = unpacked(plain)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException, RecursionError) as exc:
        raise SegmentFault(f"not msgpack: {exc or type(exc).__name__}") from exc
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise SegmentFault("not a list of messages")
    return found


def encode(plain: bytes, level: int | None, dictionary: zstandard.ZstdCompressionDict | None) -> bytes:
    """The value of an array; uncompressed without a level. At SEALED_LEVEL it takes tens of milliseconds."""
    if level is None:
        return bytes([Format.PLAIN]) + plain
    packer = zstandard.ZstdCompressor(level=level, dict_data=dictionary)
    form = Format.ZSTD if dictionary is None else Format.ZSTD_DICTIONARY
    return bytes([form]) + packer.compress(plain)


def decode(value: bytes, dictionaries: Dictionaries) -> bytes:
    """The array of a value.

    Raises:
        SegmentFault: if it is corrupt, of an unknown format, needs a dictionary that is not there, or is too large.
    """
    if not value:
        raise SegmentFault("it is empty")
    try:
        form = Format(value[0])
    except ValueError as exc:
        raise SegmentFault(f"unknown format byte {value[0]}") from exc
    if form is Format.GZIP_JSON:
        return joined([pack_message(message) for message in _old_messages(value[1:])])
    plain = value[1:] if form is Format.PLAIN else _unzstd(value[1:], form, dictionaries)
    if len(plain) < _HEAD or plain[0] != _ARRAY32:
        raise SegmentFault("not an array of messages")
    return plain


def dictionary_of(value: bytes) -> int:
    """Version of the dictionary that a value needs; 0 for none. Of a corrupt one, what it says."""
    if not value or value[0] != Format.ZSTD_DICTIONARY:
        return 0
    try:
        return int(zstandard.get_frame_parameters(value[1:]).dict_id)
    except zstandard.ZstdError:
        return 0


def _unzstd(frame: bytes, form: Format, dictionaries: Dictionaries) -> bytes:
    try:
        facts = zstandard.get_frame_parameters(frame)
        if facts.content_size in (zstandard.CONTENTSIZE_UNKNOWN, zstandard.CONTENTSIZE_ERROR):
            raise SegmentFault("its zstd frame does not say how large its content is")
        if facts.content_size > MAX_PLAIN_BYTES:
            raise SegmentFault(f"its content has {facts.content_size} bytes, more than {MAX_PLAIN_BYTES}")
        dictionary = None
        if form is Format.ZSTD_DICTIONARY:
            dictionary = dictionaries.get(facts.dict_id)
            if dictionary is None:
                raise SegmentFault(f"dictionary {facts.dict_id} is not there")
        return zstandard.ZstdDecompressor(dict_data=dictionary).decompress(frame)
    except zstandard.ZstdError as exc:
        raise SegmentFault(f"corrupt zstd frame: {exc}") from exc


def _old_messages(body: bytes) -> list[Message]:
    unpacker = zlib.decompressobj(_GZIP)
    try:
        text = unpacker.decompress(body, MAX_OLD_BYTES + 1)
        if len(text) > MAX_OLD_BYTES:
            raise SegmentFault(f"its content has more than {MAX_OLD_BYTES} bytes")
        if not unpacker.eof:
            raise SegmentFault("corrupt gzip: it ends too early")
        found: Any = json.loads(text)
    except zlib.error as exc:
        raise SegmentFault(f"corrupt gzip: {exc}") from exc
    except (ValueError, RecursionError) as exc:
        raise SegmentFault(f"not JSON: {exc or type(exc).__name__}") from exc
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise SegmentFault("not a list of messages")
    return found
