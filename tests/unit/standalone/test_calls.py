"""What the demo checks of a call."""

from __future__ import annotations

from typing import Any

import pytest

from client import Event
from standalone.calls import Call, Seen, says, shows


def seen(*events: tuple[float, str, dict[str, Any]]) -> Seen:
    call = Call("", "time", "now", {}, [])
    return Seen(call, [(at_ms, Event("s", "j", 1, 1, type, 0, data)) for at_ms, type, data in events])  # type: ignore[arg-type]


def answered(text: str) -> tuple[float, str, dict[str, Any]]:
    return 1000.0, "result", {"outcome": "succeeded", "result": {"content": [{"type": "text", "text": text}]}}


def test_an_answer_must_have_every_text() -> None:
    """What is missing is named."""
    assert says("noon", "UTC")(seen(answered("noon in UTC"))) == ""
    assert "'UTC'" in says("noon", "UTC")(seen(answered("noon")))


@pytest.mark.parametrize(
    ("times", "wrong"),
    [
        ((100.0, 200.0), ""),
        ((100.0,), "1 output events instead of 2"),
        ((900.0, 950.0), "it did not stream"),
    ],
)
def test_events_must_come_while_the_call_runs(times: tuple[float, ...], wrong: str) -> None:
    """Output that comes all at once at the end is not streamed."""
    events = [(at_ms, "output", {"text": "x"}) for at_ms in times]

    found = shows("output", 2, 500)(seen(*events, answered("")))

    assert wrong in found
    assert bool(found) == bool(wrong)


def test_the_container_is_that_of_the_start() -> None:
    """Empty for a call that never started."""
    started = (1.0, "started", {"container": "c1"})

    assert seen(started, answered("")).container == "c1"
    assert seen(answered("")).container == ""
