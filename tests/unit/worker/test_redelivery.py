"""The rule of repeats: every last event, every attempt, every kind of tool."""

from __future__ import annotations

from typing import Literal, get_args

import pytest

from common.feed import StoredEvent
from common.schema import Event, EventType
from worker.errors import OutcomeUnknown, TooManyAttempts
from worker.redelivery import Drop, End, Start, decide

MAX_ATTEMPTS = 3
SEQ = 41
BEGUN: tuple[EventType, ...] = ("started", "progress", "output")
Verdict = Literal["start", "unknown", "too many", "drop"]


def last(type_: EventType, attempt: int, **data: str) -> StoredEvent:
    return StoredEvent(SEQ, Event(job="j", session="s", attempt=attempt, type=type_, time_ms=1_700, data=data))


def verdict(step: Start | End | Drop) -> tuple[Verdict, int | None, int | None]:
    match step:
        case Start(attempt, seq):
            return "start", attempt, seq
        case End(attempt, seq, OutcomeUnknown()):
            return "unknown", attempt, seq
        case End(attempt, seq, TooManyAttempts()):
            return "too many", attempt, seq
        case Drop():
            return "drop", None, None
    raise AssertionError(step)


def table() -> list[tuple[EventType | None, int, bool, tuple[Verdict, int | None, int | None]]]:
    rows: list[tuple[EventType | None, int, bool, tuple[Verdict, int | None, int | None]]] = []
    for repeatable in (True, False):
        rows.append((None, 0, repeatable, ("start", 1, 0)))
        rows.append(("queued", 0, repeatable, ("start", 1, 0)))
        rows += [("result", attempt, repeatable, ("drop", None, None)) for attempt in range(5)]
    for type_ in BEGUN:
        for attempt in (1, 2):
            rows.append((type_, attempt, True, ("start", attempt + 1, SEQ)))
        for attempt in (3, 4):
            rows.append((type_, attempt, True, ("too many", attempt, SEQ)))
        for attempt in (1, 2, 3, 4):
            rows.append((type_, attempt, False, ("unknown", attempt, SEQ)))
    return rows


def test_the_table_has_every_type_of_event() -> None:
    """A new one needs its rows."""
    assert {type_ for type_, *_ in table()} == {None, *get_args(EventType)}


@pytest.mark.parametrize(("type_", "attempt", "repeatable", "expected"), table())
def test_the_last_event_and_the_tool_decide_what_is_done_with_a_job(
    type_: EventType | None, attempt: int, repeatable: bool, expected: tuple[Verdict, int | None, int | None]
) -> None:
    """Not started: it runs. Started: again only if the tool may be repeated, three times at most. Ended: dropped."""
    event = None if type_ is None else last(type_, attempt)

    assert verdict(decide(event, repeatable=repeatable, max_attempts=MAX_ATTEMPTS)) == expected


def test_a_job_whose_outcome_is_unknown_tells_who_had_started_it_and_when() -> None:
    """As its `started` event says; an event after it does not name the worker."""
    by_started = decide(last("started", 2, worker="w-1"), repeatable=False, max_attempts=MAX_ATTEMPTS)
    by_progress = decide(last("progress", 2), repeatable=False, max_attempts=MAX_ATTEMPTS)

    assert isinstance(by_started, End)
    assert isinstance(by_progress, End)
    assert by_started.error.data == {"attempt": 2, "worker": "w-1", "started_ms": 1_700}
    assert by_progress.error.data == {"attempt": 2, "worker": "unknown", "started_ms": 1_700}


def test_one_attempt_may_be_all_that_there_is() -> None:
    """Then a repeatable job is given up after its first."""
    step = decide(last("started", 1), repeatable=True, max_attempts=1)

    assert verdict(step) == ("too many", 1, SEQ)
