"""From messages to frames and back. No I/O here."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from client.errors import ClientError, ProtocolFault, Refused
from client.event import Event

Protocol = Literal["mcp.json", "mcp.msgpack"]
Frame = str | bytes


@dataclass(frozen=True, slots=True)
class Codec:
    """How messages look in frames; `protocol` is the WebSocket subprotocol that asks for it."""

    protocol: Protocol
    encode: Callable[[Any], Frame]
    decode: Callable[[Any], Any]
    """Raises ValueError on a frame that it cannot read."""


@dataclass(frozen=True, slots=True)
class Answer:
    """To request `id`: a result, or the refusal. `id` is None where the gateway could not read the request's."""

    id: int | None
    result: dict[str, Any]
    refused: Refused | None


def codec(protocol: Protocol) -> Codec:
    """
    Raises:
        ClientError: for `mcp.msgpack` where the msgpack package is not installed.
    """
    if protocol == "mcp.json":
        # What JSON cannot say fails here and not at the gateway, which could not tell whose frame it was.
        encoder = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return Codec(protocol, encoder.encode, json.loads)
    try:
        import msgpack
    except ImportError as exc:
        raise ClientError("the protocol mcp.msgpack needs the package msgpack") from exc
    return Codec(protocol, msgpack.packb, lambda frame: msgpack.unpackb(frame, strict_map_key=False))


def request(id: int, method: str, params: dict[str, Any]) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id, "method": method, "params": params}


def read(codec: Codec, frame: Frame) -> Answer | Event | None:
    """What a frame says; None for a notification that this version does not know.

    Raises:
        ProtocolFault: if it is none of ours.
    """
    try:
        message = codec.decode(frame)
    except (ValueError, TypeError) as exc:
        raise ProtocolFault(f"the gateway sent a frame that is not {codec.protocol}: {exc}") from exc
    match message:
        case {"method": "notifications/event", "params": dict(params)}:
            return Event.from_params(params)
        case {"method": str()}:
            return None
        case {"id": int() | None as id, "error": dict(error)}:
            return Answer(id, {}, Refused.from_error(error))
        case {"id": int(id), "result": dict(result)}:
            return Answer(id, result, None)
        case _:
            raise ProtocolFault("the gateway sent a message that is no answer and no notification")
