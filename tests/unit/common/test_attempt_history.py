"""A job's attempts as its events tell them, and as much of them as there is room for."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from common.attempt_history import KEPT, attempts_of, fitted, newest_digest, newest_stderr, within
from common.schema import AttemptRecord, DeadLetter, Event, EventType

GIVEN_UP_MS = 9_000
GONE = {"type": "server_gone", "message": "exit code 3", "stderr": "no memory"}


def event(type_: EventType, attempt: int, time_ms: int, **data: Any) -> Event:
    return Event(job="j", session="s", attempt=attempt, type=type_, time_ms=time_ms, data=data)


def started(attempt: int, time_ms: int, worker: str = "w-1") -> Event:
    told = {"worker": worker, "engine": "e", "container": "c", "image_digest": f"sha256:{attempt}", "warm": True}
    return event("started", attempt, time_ms, **told)


def record(attempt: int, **fields: Any) -> AttemptRecord:
    made = AttemptRecord(
        attempt=attempt,
        worker="w-1",
        engine="e",
        container="c",
        image_digest=f"sha256:{attempt}",
        started_ms=attempt * 100,
        ended_ms=None,
        error=None,
    )
    return made | fields  # type: ignore[return-value]


def letter(payload: bytes = b"job", **fields: Any) -> DeadLetter:
    made = DeadLetter(
        job="j",
        tenant="t",
        server="srv",
        session="s",
        tool="echo",
        redrive_of="",
        reason="given up",
        error={"type": "too_many_attempts", "message": "given up"},
        stderr="",
        image_digest="",
        traceparent="",
        attempts=[],
        subject="jobs",
        payload=payload,
        size=len(payload),
        deliveries=1,
        time_ms=1,
    )
    return made.model_copy(update=fields)


def test_an_attempt_that_is_told_again_is_one_attempt() -> None:
    """A silent attempt says again that it has started, and so does one whose call goes to another container."""
    again = event("started", 1, 900, worker="w-1", engine="e", container="c2", image_digest="sha256:1", since_ms=100)

    told = attempts_of([started(1, 100), again], cause=None, given_up_ms=GIVEN_UP_MS)

    assert told == [record(1, container="c2")]


def test_an_attempt_that_failed_has_its_end_and_its_error() -> None:
    """As `retrying` told them; what it told else is no part of the history."""
    events = [started(1, 100), event("output", 1, 110, text="x"), event("retrying", 1, 150, error=GONE)]

    assert attempts_of(events, cause=None, given_up_ms=GIVEN_UP_MS) == [record(1, ended_ms=150, error=GONE)]


def test_an_attempt_whose_worker_was_lost_has_neither() -> None:
    """Only that the next one began is known."""
    found = attempts_of([started(1, 100), started(2, 200)], cause=None, given_up_ms=GIVEN_UP_MS)

    assert found == [record(1), record(2)]


def test_the_last_attempt_ends_with_the_cause_for_which_the_job_was_given_up() -> None:
    """No event tells it: the terminal one is stored after the letter."""
    events = [started(1, 100), event("retrying", 1, 150, error=GONE), started(2, 200)]
    found = attempts_of(events, cause={"type": "x"}, given_up_ms=GIVEN_UP_MS)

    assert found == [record(1, ended_ms=150, error=GONE), record(2, ended_ms=GIVEN_UP_MS, error={"type": "x"})]


def test_a_job_that_never_started_has_no_attempts() -> None:
    """Whatever it was given up for."""
    assert attempts_of([event("queued", 0, 1)], cause=GONE, given_up_ms=GIVEN_UP_MS) == []


def test_events_of_strangers_are_read_as_far_as_they_can_be() -> None:
    """A `started` that names nothing, a `retrying` of another attempt or without an error."""
    odd = [
        event("retrying", 1, 50, error=GONE),
        event("started", 1, 100, worker=7),
        event("retrying", 2, 150, error=GONE),
        event("retrying", 1, 160, error="text"),
    ]
    [found] = attempts_of(odd, cause=None, given_up_ms=GIVEN_UP_MS)

    assert (found["worker"], found["image_digest"], found["ended_ms"], found["error"]) == ("7", "", 160, None)


def test_the_newest_stderr_and_image_that_are_known_are_those_of_the_job() -> None:
    """The last attempt may have told nothing."""
    attempts = [record(1, error=GONE | {"stderr": "old"}), record(2, error=GONE), record(3, image_digest="")]

    assert (newest_stderr(attempts), newest_digest(attempts)) == ("no memory", "sha256:2")
    assert (newest_stderr([]), newest_digest([])) == ("", "")


def test_a_history_with_room_is_kept_as_it_is() -> None:
    """But for what is older than the newest thirty attempts."""
    attempts = [record(number, error=GONE) for number in range(1, KEPT + 5)]

    assert within(attempts, 1_000_000) == attempts[-KEPT:]


@pytest.mark.parametrize("room", [0, 100, 300, 1_000, 2_000, 5_000])
def test_a_history_takes_no_more_room_than_it_has(room: int) -> None:
    """Of its last attempt the number is kept in any case: the next one is counted on from it."""
    attempts = [record(number, error=GONE | {"stderr": "e" * 10_000}) for number in range(1, 6)]
    kept = within(attempts, room)

    assert kept[-1]["attempt"] == 5
    assert len(kept) == 1 or len(msgpack.packb(kept)) <= room
    assert attempts[0]["error"] == GONE | {"stderr": "e" * 10_000}


def test_stderr_goes_before_errors_and_errors_before_attempts() -> None:
    """An error's message is worth more than its server's last words, which the letter has beside."""
    attempts = [record(number, error=GONE | {"stderr": "e" * 1_000}) for number in (1, 2)]
    slim = [record(number, error={"type": "server_gone", "message": "exit code 3"}) for number in (1, 2)]

    bare = [record(1), record(2)]

    assert within(attempts, len(msgpack.packb(slim))) == slim
    assert within(attempts, len(msgpack.packb(slim)) - 1) == bare
    assert within(attempts, len(msgpack.packb(bare)) - 1) == bare[1:]


def test_a_letter_that_fits_is_kept_as_it_is() -> None:
    """With everything."""
    whole = letter(stderr="e" * 1_000, attempts=[record(1, error=GONE)])

    assert fitted(whole, len(whole.encode())) == whole


@pytest.mark.parametrize("limit", [1_200, 2_500, 5_000, 20_000])
def test_a_letter_is_cut_to_what_the_store_takes_and_the_job_stays_whole(limit: int) -> None:
    """As long as it has room at all: without its message no job can be made of a letter."""
    long = "e" * 30_000
    cause = {"type": "too_many_attempts", "message": "given up", "cause": {"stderr": long}}
    whole = letter(b"p" * 400, stderr=long, error=cause, attempts=[record(n, error={"stderr": long}) for n in (1, 2)])
    cut = fitted(whole, limit)

    assert len(cut.encode()) <= limit
    assert (cut.payload, cut.size) == (whole.payload, 400)
    assert cut.attempts[-1]["attempt"] == 2
    assert cut.error["type"] == "too_many_attempts"


def test_a_message_without_room_beside_a_letter_is_cut_and_its_size_tells() -> None:
    """Poison may be as large as a message can be."""
    cut = fitted(letter(b"p" * 5_000), 2_000)

    assert len(cut.encode()) <= 2_000
    assert (len(cut.payload) > 1_000, cut.size) == (True, 5_000)


def test_what_a_tool_said_that_no_message_can_hold_does_not_keep_a_letter_from_being_stored() -> None:
    """Half a surrogate pair in the last words of a server."""
    said = letter(attempts=[record(1, error={"stderr": "\ud83d" * 2_000})], stderr="\ud83d")

    assert len(fitted(said, 1_500).encode()) <= 1_500
