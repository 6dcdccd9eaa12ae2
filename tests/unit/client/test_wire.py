"""Frames and messages."""

from __future__ import annotations

import msgpack
import pytest

from client import Event, Position, ProtocolFault
from client.wire import Answer, Protocol, codec, read, request

PARAMS = {"session": "s", "job": "j", "seq": 7, "attempt": 1, "type": "progress", "time_ms": 5, "data": {"progress": 1}}


@pytest.mark.parametrize("protocol", ["mcp.json", "mcp.msgpack"])
def test_an_event_is_read_from_either_encoding(protocol: Protocol) -> None:
    """The message is the same in text and in binary frames."""
    kind = codec(protocol)
    frame = kind.encode({"jsonrpc": "2.0", "method": "notifications/event", "params": PARAMS})

    assert read(kind, frame) == Event("s", "j", 7, 1, "progress", 5, {"progress": 1})
    assert isinstance(frame, str if protocol == "mcp.json" else bytes)


def test_a_request_is_json_rpc() -> None:
    """With an id, a method and params."""
    frame = codec("mcp.msgpack").encode(request(3, "job/get", {"job": "j"}))

    assert msgpack.unpackb(frame) == {"jsonrpc": "2.0", "id": 3, "method": "job/get", "params": {"job": "j"}}


def test_an_error_without_a_request_id_is_read() -> None:
    """The gateway may not have been able to read the id."""
    frame = '{"jsonrpc": "2.0", "id": null, "error": {"code": -32700, "message": "no JSON"}}'

    answer = read(codec("mcp.json"), frame)

    assert isinstance(answer, Answer)
    assert answer.id is None
    assert answer.refused is not None
    assert (answer.refused.type, answer.refused.message) == ("internal_error", "no JSON")


@pytest.mark.parametrize("frame", [b"\xc1", b"\x81\xa1", "text"])
def test_what_is_not_msgpack_is_a_fault(frame: str | bytes) -> None:
    """A cut-off or wrong frame, or a text frame."""
    with pytest.raises(ProtocolFault, match=r"not mcp\.msgpack"):
        read(codec("mcp.msgpack"), frame)


def test_a_position_can_be_written_and_read_back() -> None:
    """The form is that of an event's id in the event stream over HTTP."""
    position = Position("2026:a", 12)

    assert str(position) == "2026:a:12"
    assert Position.parse("2026:a:12") == position
    with pytest.raises(ValueError, match="<epoch>:<seq>"):
        Position.parse("12")
