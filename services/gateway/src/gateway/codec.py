"""Frames to plain values and back: JSON as text, msgpack as bytes.

What comes in is held to what JSON can say in both, so that a job which came as msgpack can be handed to a tool
as JSON. What goes out is never refused: a value that JSON cannot say would otherwise be met again at every
replay.
"""

from __future__ import annotations

import base64
import json
import math
from typing import Any, Final, Protocol

import msgpack

from common.errors import InvalidRequest, ParseError


class Codec(Protocol):
    """One subprotocol of the WebSocket."""

    subprotocol: str

    def frame_size(self, frame: str | bytes) -> int:
        """Bytes on the wire, before masking and framing."""

    def decode(self, frame: str | bytes) -> Any:
        """
        Raises:
            InvalidRequest: if it is the other kind of frame.
            ParseError: if it cannot be read, or holds what JSON cannot say.
        """

    def encode(self, value: dict[str, Any]) -> dict[str, Any]:
        """The ASGI message that sends `value`."""


class JsonCodec:
    subprotocol = "mcp.json"

    def frame_size(self, frame: str | bytes) -> int:
        return len(frame) if isinstance(frame, bytes) or frame.isascii() else len(frame.encode())

    def decode(self, frame: str | bytes) -> Any:
        if isinstance(frame, bytes):
            raise InvalidRequest(f"a binary frame under {self.subprotocol}: send text")
        return decode_json(frame)

    def encode(self, value: dict[str, Any]) -> dict[str, Any]:
        return {"type": "websocket.send", "text": encode_json(value)}


class MsgpackCodec:
    subprotocol = "mcp.msgpack"

    def frame_size(self, frame: str | bytes) -> int:
        return len(frame) if isinstance(frame, bytes) else len(frame.encode())

    def decode(self, frame: str | bytes) -> Any:
        if isinstance(frame, str):
            raise InvalidRequest(f"a text frame under {self.subprotocol}: send binary")
        try:
            value = msgpack.unpackb(frame, strict_map_key=True)
            _hold_to_json(value)
        except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as exc:
            raise ParseError(f"not msgpack of JSON values: {exc or type(exc).__name__}") from exc
        return value

    def encode(self, value: dict[str, Any]) -> dict[str, Any]:
        return {"type": "websocket.send", "bytes": msgpack.packb(value)}


CODECS: Final[dict[str, Codec]] = {codec.subprotocol: codec for codec in (JsonCodec(), MsgpackCodec())}
DEFAULT_CODEC: Final[Codec] = CODECS["mcp.json"]


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


_decoder: Final = json.JSONDecoder(parse_constant=_refuse_constant)
_encoder: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def decode_json(text: str) -> Any:
    """
    Raises:
        ParseError: if it is not JSON (NaN, Infinity and half a surrogate pair are not), or nested too deeply.
    """
    try:
        value = _decoder.decode(text)
        if "\\ud" in text or "\\uD" in text:
            encode_json(value).encode()  # half a pair passes the decoder, and fails wherever text becomes bytes
    except (ValueError, RecursionError) as exc:
        raise ParseError(f"not JSON: {exc or type(exc).__name__}") from exc
    return value


def encode_json(value: Any) -> str:
    try:
        return _encoder.encode(value)
    except (TypeError, ValueError):
        return _encoder.encode(_as_json(value))


def _as_json(value: Any) -> Any:
    """`value` with what JSON cannot say replaced: bytes by base64, NaN and infinities by null, others by text."""
    if isinstance(value, dict):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(item) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (str, int, float)):
        return value
    return str(value)


def _hold_to_json(value: Any) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError("a map key is not text")
            _hold_to_json(item)
    elif isinstance(value, list):
        for item in value:
            _hold_to_json(item)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not JSON")
    elif value is not None and not isinstance(value, (str, int, float)):
        raise ValueError(f"{type(value).__name__} is not JSON")
