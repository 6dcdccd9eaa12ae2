"""An answer that came in pieces, put together."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest

from client.collected import WHOLE_RESULT_BYTES, Attempts, Collected
from client.event import Event

ANSWER = {"content": [{"type": "text", "text": "é" * 30_000}], "isError": False}
PREVIEW = {"content": [{"type": "text", "text": "the beginning"}]}
WHOLE = json.dumps(ANSWER, ensure_ascii=False).encode()
PIECE = 1_001


def event(type_: Any, attempt: int = 1, **data: Any) -> Event:
    return Event("s", "j", 1, attempt, type_, 0, data)


def pieces(body: bytes = WHOLE, attempt: int = 1) -> list[Event]:
    """Cut through characters too: such pieces come as bytes, and in JSON as base64."""
    events = []
    for offset in range(0, len(body), PIECE):
        piece = body[offset : offset + PIECE]
        carried: dict[str, Any] = {"data": base64.b64encode(piece).decode() if offset % 2 else piece}
        if piece.isascii():
            carried = {"text": piece.decode()}
        events.append(event("output", attempt, stream="result", offset=offset, **carried))
    return events


def ended(body: bytes = WHOLE, attempt: int = 1) -> Event:
    output = {"result": {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()}}
    return event("result", attempt, outcome="succeeded", result=PREVIEW, output=output)


def result_of(*events: Event) -> dict[str, Any] | None:
    collected = Collected()
    for each in events:
        collected.take(each)
    return collected.result(events[-1]).result


def test_an_answer_in_pieces_is_the_whole_answer() -> None:
    """Whichever form each piece came in; the other streams are not part of it."""
    begin, *rest = pieces()

    assert result_of(begin, event("output", stream="stderr", offset=0, text="x"), *rest, ended()) == ANSWER


def test_an_answer_in_one_piece_stays_as_it_is() -> None:
    """There are no events of it."""
    assert result_of(event("started"), event("result", outcome="succeeded", result=PREVIEW)) == PREVIEW


@pytest.mark.parametrize("turn", ["started", "retrying", "higher"])
def test_what_an_earlier_attempt_told_is_void(turn: str) -> None:
    """However the reader learns that it was one."""
    earlier = pieces(b"x" * 5_000)
    between = {
        "started": [event("started", 2, discard=True)],
        "retrying": [event("retrying", error={})],
        "higher": [],
    }[turn]

    assert result_of(*earlier, *between, *pieces(attempt=2), ended(attempt=2)) == ANSWER


def test_a_repeated_start_of_the_same_attempt_voids_nothing() -> None:
    """It only says that the attempt goes on."""
    begin, *rest = pieces(attempt=2)
    repeated = event("started", 2, discard=True, since_ms=1)

    assert result_of(event("started", 2, discard=True), begin, repeated, *rest, ended(attempt=2)) == ANSWER


@pytest.mark.parametrize("fault", ["missing", "changed", "lost"])
def test_an_answer_that_is_not_all_there_stays_a_preview(fault: str) -> None:
    """Nothing is made up."""
    begin, second, *rest = pieces()
    instead = {
        "missing": [],
        "changed": [event("output", stream="result", offset=PIECE, text="x" * PIECE)],
        "lost": [event("output", stream="result", offset=PIECE, size=PIECE, lost=True)],
    }[fault]

    assert second.output_bytes
    assert result_of(begin, *instead, *rest, ended()) == PREVIEW


def test_an_answer_that_is_too_large_stays_a_preview_and_is_not_held() -> None:
    """Memory is bounded."""
    body = json.dumps({"content": [], "x": "y" * WHOLE_RESULT_BYTES}).encode()
    collected = Collected()
    for offset in range(0, len(body), 1 << 17):
        text = body[offset : offset + (1 << 17)].decode()
        collected.take(event("output", stream="result", offset=offset, text=text))

    assert collected.result(ended(body)).result == PREVIEW
    assert len(collected._bytes) <= WHOLE_RESULT_BYTES


def test_the_first_attempt_begins_nothing_anew() -> None:
    """Nor does one that is joined in the middle."""
    attempts = Attempts()

    assert not any(
        attempts.begins_anew(each)
        for each in (event("queued", 0), event("progress", 0), event("started", 3), event("output", 3))
    )


@pytest.mark.parametrize(
    "event_", [event("retrying", error={}), event("started", discard=True), event("output", 2)], ids=lambda e: e.type
)
def test_each_of_three_signs_alone_begins_anew(event_: Event) -> None:
    """A reader may have missed the others."""
    attempts = Attempts()
    attempts.begins_anew(event("started"))

    assert attempts.begins_anew(event_)
    assert not attempts.begins_anew(event("output", event_.attempt))


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        ({"text": "é"}, "é".encode()),
        ({"data": b"\xff\x00"}, b"\xff\x00"),
        ({"data": "/wA="}, b"\xff\x00"),
        ({"size": 5}, b""),
    ],
)
def test_the_bytes_of_an_output_event_are_the_same_in_every_form(data: dict[str, Any], wanted: bytes) -> None:
    """Text, bytes (msgpack), base64 (JSON); and none where it only tells of them."""
    assert event("output", stream="stdout", offset=0, **data).output_bytes == wanted
    assert event("progress", **data).output_bytes == b""
