"""What to do with a delivered job, told by what is stored of it. Pure; the rules are those of `common.job_state`."""

from __future__ import annotations

from dataclasses import dataclass

from common.ending import Ending
from common.feed import StoredEvent
from common.job_errors import JobError, OutcomeUnknown
from common.job_state import Signal, State, state_after, step
from common.schema import Event, Outcome
from worker.errors import TooManyAttempts

MAX_ATTEMPTS = 3


@dataclass(frozen=True)
class Past:
    """What is stored of a job."""

    newest: StoredEvent | None
    """None for a job older than the resume window that never started."""
    started: Event | None = None
    """The `started` event of the newest attempt, where there was one."""
    cancel_requested: bool = False
    lapsed: bool = False
    """It is so old that its events, if there were any, may be past the resume window."""
    first_attempt: int = 1
    """Of a job that was redriven: behind those that it had before."""

    @property
    def state(self) -> State:
        return state_after(self.newest.event.type if self.newest else None)

    @property
    def attempt(self) -> int:
        return self.newest.event.attempt if self.newest else 0

    @property
    def fence(self) -> int:
        return self.newest.fence if self.newest else 0


@dataclass(frozen=True)
class Start:
    """Run it as this attempt, behind that event."""

    attempt: int
    last_seq: int


@dataclass(frozen=True)
class End:
    """Do not run it; it ends so."""

    attempt: int
    last_seq: int
    ending: Ending


@dataclass(frozen=True)
class Prove:
    """A client wants it stopped, and the worker that ran it is lost: it ends as what can be proven of that attempt."""

    attempt: int
    last_seq: int
    started: Event


@dataclass(frozen=True)
class Drop:
    """It has ended already; only the acknowledgement was lost."""


@dataclass(frozen=True)
class Leave:
    """It is another worker's: neither run nor acknowledged here."""


Step = Start | End | Prove | Drop | Leave


def decide(past: Past, *, repeatable: bool, now_ms: int, ack_wait_ms: int) -> Step:
    """The rule of repeats: a job that had not started runs; one that had, only if its tool may be repeated.

    The store delivers a running job again only when its worker was silent for `ack_wait_ms`. So a delivery which finds
    that an attempt began just now is older than that attempt: it waited in a process that was frozen.
    """
    newest = past.newest
    if past.state is State.ENDED:
        return Drop()
    if past.state is State.RETRYING and past.cancel_requested:
        return End(past.attempt, past.fence, Ending(_outcome(past.state, Signal.CANCEL)))
    if past.lapsed and not repeatable:
        step(past.state, Signal.LOSE)
        return End(0, 0, Ending.of(OutcomeUnknown(0, "unknown", 0, "its events are past the resume window")))
    if past.state is not State.RUNNING:
        step(past.state, Signal.START)
        return Start(past.attempt + 1 if past.attempt else past.first_attempt, past.fence)
    assert newest is not None
    started = past.started or newest.event
    if now_ms - started_ms(started) < ack_wait_ms // 2:
        return Leave()
    if past.cancel_requested:
        return Prove(past.attempt, newest.fence, started)
    if not repeatable:
        step(past.state, Signal.LOSE)
        return End(past.attempt, newest.fence, Ending.of(unknown(past.attempt, started)))
    return after_failure(past.attempt, newest.fence, cause=None, first_attempt=past.first_attempt)


def is_last(attempt: int, first_attempt: int) -> bool:
    """Is there no attempt left behind this one? A job that was redriven has all of them anew."""
    return attempt - first_attempt + 1 >= MAX_ATTEMPTS


def after_failure(attempt: int, last_seq: int, cause: JobError | None, *, first_attempt: int) -> Start | End:
    """What follows an attempt that may be repeated: the next one, while there is one left."""
    if is_last(attempt, first_attempt):
        return End(attempt, last_seq, Ending.of(TooManyAttempts(attempt, cause)))
    return Start(attempt + 1, last_seq)


def _outcome(state: State, signal: Signal) -> Outcome:
    outcome = step(state, signal).outcome
    assert outcome is not None, "the signal ends the job"
    return outcome


def unknown(attempt: int, started: Event, *, cancel_requested: bool = False) -> OutcomeUnknown:
    """What is known of an attempt whose worker is lost. `started` may be a repeat of the first (worker/outbox.py)."""
    worker = str(started.data.get("worker", "unknown"))
    why = "the tool is neither read-only nor idempotent, so it was not run again"
    if cancel_requested:
        why = "its cancel was asked for, and nobody can prove that it stopped"
    return OutcomeUnknown(attempt, worker, started_ms(started), why, cancel_requested=cancel_requested)


def started_ms(started: Event) -> int:
    """When an attempt began, by its newest `started` event."""
    return int(started.data.get("since_ms", started.time_ms))
