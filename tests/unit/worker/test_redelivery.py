"""The rule of repeats: every state of a job, every attempt, every kind of tool."""

from __future__ import annotations

from typing import get_args

import pytest

from common.ending import Ending
from common.feed import StoredEvent
from common.job_errors import OutcomeUnknown
from common.job_state import State, state_after
from common.schema import Event, EventType
from worker.errors import ServerGone, TooManyAttempts
from worker.redelivery import MAX_ATTEMPTS, Drop, End, Leave, Past, Prove, Start, Step, after_failure, decide

SEQ = 41
ACK_WAIT_MS = 30_000
BEGAN_MS = 1_700
LATER_MS = BEGAN_MS + ACK_WAIT_MS
RUNNING: tuple[EventType, ...] = ("started", "progress", "output")


def event(type_: EventType, attempt: int = 1, time_ms: int = BEGAN_MS, **data: str) -> Event:
    return Event(job="j", session="s", attempt=attempt, type=type_, time_ms=time_ms, data=data)


def past(type_: EventType | None, attempt: int = 1, *, cancel: bool = False) -> Past:
    if type_ is None:
        return Past(None)
    started = event("started", attempt, worker="w-1") if attempt else None
    return Past(StoredEvent(SEQ, event(type_, attempt, BEGAN_MS + 5)), started, cancel)


def decided(what: Past, *, repeatable: bool, now_ms: int = LATER_MS) -> Step:
    return decide(what, repeatable=repeatable, now_ms=now_ms, ack_wait_ms=ACK_WAIT_MS)


def ending(step: Step) -> Ending:
    assert isinstance(step, End)
    return step.ending


@pytest.mark.parametrize("repeatable", [True, False])
@pytest.mark.parametrize("type_", [None, "queued"])
def test_a_job_that_had_not_started_runs(type_: EventType | None, repeatable: bool) -> None:
    """Whatever its tool is, behind nothing: `queued` is no fence."""
    assert decided(past(type_, 0), repeatable=repeatable) == Start(1, 0)


@pytest.mark.parametrize("repeatable", [True, False])
@pytest.mark.parametrize("attempt", range(5))
def test_a_job_that_has_ended_is_dropped(attempt: int, repeatable: bool) -> None:
    """Only its acknowledgement was lost."""
    assert decided(past("result", attempt), repeatable=repeatable) == Drop()


@pytest.mark.parametrize("type_", RUNNING)
@pytest.mark.parametrize("attempt", range(1, MAX_ATTEMPTS + 2))
def test_a_running_job_of_a_repeatable_tool_runs_again_until_no_attempt_is_left(type_: EventType, attempt: int) -> None:
    """Behind its newest event; then it is given up."""
    step = decided(past(type_, attempt), repeatable=True)

    if attempt < MAX_ATTEMPTS:
        assert step == Start(attempt + 1, SEQ)
    else:
        assert isinstance(step, End)
        assert (step.attempt, step.last_seq) == (attempt, SEQ)
        assert isinstance(step.ending.error, TooManyAttempts)
        assert step.ending.outcome == "dead_lettered"


@pytest.mark.parametrize("type_", RUNNING)
@pytest.mark.parametrize("attempt", range(1, MAX_ATTEMPTS + 2))
def test_a_running_job_of_any_other_tool_ends_with_what_is_known(type_: EventType, attempt: int) -> None:
    """Attempt, worker and moment are those of its `started` event, whatever it told after."""
    step = decided(past(type_, attempt), repeatable=False)

    error = ending(step).error
    assert isinstance(error, OutcomeUnknown)
    assert error.as_dict() | {"message": ""} == {
        "type": "outcome_unknown",
        "message": "",
        "retryable": False,
        "attempt": attempt,
        "worker": "w-1",
        "started_ms": BEGAN_MS,
        "cancel_requested": False,
    }


@pytest.mark.parametrize("repeatable", [True, False])
def test_a_failed_attempt_is_followed_by_the_next_one(repeatable: bool) -> None:
    """`retrying` was stored because it may be: also for a tool that may not be repeated, which it did not reach."""
    assert decided(past("retrying", 2), repeatable=repeatable) == Start(3, SEQ)


def test_a_cancelled_job_whose_attempt_had_failed_ends_cancelled() -> None:
    """Nothing of it runs."""
    assert ending(decided(past("retrying", 2, cancel=True), repeatable=True)) == Ending("cancelled")


@pytest.mark.parametrize("repeatable", [True, False])
def test_a_cancelled_job_whose_worker_is_lost_is_not_run_again(repeatable: bool) -> None:
    """It is looked for proof that the attempt is dead."""
    step = decided(past("progress", 2, cancel=True), repeatable=repeatable)

    assert step == Prove(2, SEQ, event("started", 2, worker="w-1"))


@pytest.mark.parametrize("repeatable", [True, False])
def test_a_delivery_from_before_an_attempt_that_just_began_is_left_alone(repeatable: bool) -> None:
    """It waited in a frozen process: the store gives a job away again only after a silence of ack_wait."""
    just_now = BEGAN_MS + ACK_WAIT_MS // 2 - 1

    assert decided(past("started"), repeatable=repeatable, now_ms=just_now) == Leave()
    assert decided(past("started"), repeatable=repeatable, now_ms=just_now + 1) != Leave()


def test_a_redriven_job_that_had_not_started_goes_on_counting() -> None:
    """Behind the attempts of the job that it was made of; its own events begin at nothing."""
    assert decided(Past(None, first_attempt=4), repeatable=False) == Start(4, 0)
    assert decided(Past(StoredEvent(SEQ, event("queued", 0)), first_attempt=4), repeatable=False) == Start(4, 0)


@pytest.mark.parametrize("attempt", range(4, 8))
def test_a_redriven_job_has_all_its_attempts_anew(attempt: int) -> None:
    """Lost or failed, three of them whatever their numbers are."""
    lost = decided(
        Past(StoredEvent(SEQ, event("started", attempt)), event("started", attempt), first_attempt=4), repeatable=True
    )
    failed = after_failure(attempt, SEQ, ServerGone("gone"), first_attempt=4)

    for step in (lost, failed):
        if attempt < 6:
            assert step == Start(attempt + 1, SEQ)
        else:
            assert ending(step).outcome == "dead_lettered"


def test_a_job_whose_events_may_all_be_gone_runs_only_if_it_may_be_repeated() -> None:
    """Delivered again, and older than the oldest stored event: whether it had started nobody knows."""
    lapsed = Past(None, lapsed=True)

    assert decided(lapsed, repeatable=True) == Start(1, 0)
    assert ending(decided(lapsed, repeatable=False)).outcome == "outcome_unknown"


def test_a_silent_attempt_began_when_it_first_said_so() -> None:
    """Its newest `started` is a repeat, and says since when."""
    repeat = event("started", 1, BEGAN_MS + 10_000, worker="w-1")
    repeat = repeat.model_copy(update={"data": repeat.data | {"since_ms": BEGAN_MS}})
    step = decided(Past(StoredEvent(SEQ, repeat), repeat), repeatable=False)

    error = ending(step).error
    assert error is not None
    assert error.data["started_ms"] == BEGAN_MS


def test_what_the_last_attempt_failed_with_is_told() -> None:
    """The dead letter's reader wants the cause."""
    gone = ServerGone("exit code 3", exit_code=3, stderr="no memory")
    error = ending(after_failure(MAX_ATTEMPTS, SEQ, gone, first_attempt=1)).error

    assert error is not None
    assert error.message.endswith("the last one failed: exit code 3")
    assert error.data["cause"]["stderr"] == "no memory"


@pytest.mark.parametrize("type_", [None, *get_args(EventType)])
def test_every_type_of_event_is_decided(type_: EventType | None) -> None:
    """A new one needs its state."""
    if type_ == "cancelling":
        assert state_after(type_) is State.RUNNING  # it has a subject of its own, so it is never the newest
    else:
        assert decided(past(type_), repeatable=True) is not None
