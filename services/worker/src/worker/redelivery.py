"""What to do with a delivered job, told by its last stored event alone. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from common.feed import StoredEvent
from worker.errors import JobError, OutcomeUnknown, TooManyAttempts


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
    error: JobError


@dataclass(frozen=True)
class Drop:
    """It has ended already; only the acknowledgement was lost."""


def decide(last: StoredEvent | None, *, repeatable: bool, max_attempts: int) -> Start | End | Drop:
    """The rule of repeats: a job that had not started runs; one that had, only if its tool may be repeated.

    No event at all is a job older than the resume window that never started.
    """
    if last is None:
        return Start(attempt=1, last_seq=0)
    event = last.event
    if event.terminal:
        return Drop()
    if event.type == "queued":
        return Start(attempt=1, last_seq=last.fence)
    if not repeatable:
        worker = str(event.data.get("worker", "")) if event.type == "started" else "unknown"
        return End(event.attempt, last.fence, OutcomeUnknown(event.attempt, worker, event.time_ms))
    if event.attempt >= max_attempts:
        return End(event.attempt, last.fence, TooManyAttempts(event.attempt))
    return Start(attempt=event.attempt + 1, last_seq=last.fence)
