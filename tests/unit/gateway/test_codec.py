"""Frames: what JSON and msgpack let in, and that everything gets out."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidRequest, ParseError
from gateway.codec import CODECS, decode_json, encode_json

JSON = CODECS["mcp.json"]
MSGPACK = CODECS["mcp.msgpack"]

plain_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(st.dictionaries(st.text(), plain_values, max_size=4))
def test_what_json_can_say_goes_through_both_codecs_unchanged(value: dict[str, Any]) -> None:
    """Sent by one and read by the other side's own library."""
    assert JSON.decode(JSON.encode(value)["text"]) == value
    assert MSGPACK.decode(MSGPACK.encode(value)["bytes"]) == value


@pytest.mark.parametrize(
    "text", ["", "{", "nul", "NaN", "[Infinity]", '{"a": -Infinity}', '"\\ud800"', '{"\\uDFFF": 1}', "[" * 100_000]
)
def test_what_is_not_json_is_refused(text: str) -> None:
    """Python's decoder alone would let constants and half surrogate pairs in."""
    with pytest.raises(ParseError):
        decode_json(text)


def test_an_escaped_surrogate_pair_is_one_character() -> None:
    """Only halves are refused."""
    assert decode_json('"\\ud83d\\ude00"') == "😀"


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"\xc1",
        msgpack.packb({1: "a"}),
        msgpack.packb({"a": b"raw"}),
        msgpack.packb({"a": float("nan")}),
        msgpack.packb({"a": [float("inf")]}),
        msgpack.packb({"a": msgpack.Timestamp(1)}),
        msgpack.packb({"a": msgpack.ExtType(7, b"")}),
        msgpack.packb({"a": 1}) + b"\x00",
        b"\x91" * 5_000,
    ],
)
def test_msgpack_that_json_could_not_say_is_refused(packed: bytes) -> None:
    """A tool gets its arguments as JSON, whichever way they came."""
    with pytest.raises(ParseError):
        MSGPACK.decode(packed)


def test_the_other_kind_of_frame_is_no_parse_error_but_a_wrong_request() -> None:
    """It may well be readable; it is not what was agreed."""
    with pytest.raises(InvalidRequest):
        JSON.decode(b"{}")
    with pytest.raises(InvalidRequest):
        MSGPACK.decode("{}")


def test_what_json_cannot_say_goes_out_all_the_same() -> None:
    """An event that could not be sent would be met again at every replay."""
    sent = json.loads(encode_json({"nan": float("nan"), "raw": b"\x00\xff", "list": [float("-inf"), 1], 7: {1}}))

    assert sent == {"nan": None, "raw": "AP8=", "list": [None, 1], "7": "{1}"}


@pytest.mark.parametrize(("frame", "size"), [("abc", 3), ("ä", 2), ("😀", 4), (b"\xff\xfe", 2)])
def test_the_size_of_a_frame_is_its_bytes(frame: str | bytes, size: int) -> None:
    """Whichever kind it is."""
    assert JSON.frame_size(frame) == MSGPACK.frame_size(frame) == size
