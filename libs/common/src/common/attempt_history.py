"""What became of each attempt of a job, told by its events. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgpack

from common.schema import AttemptRecord, DeadLetter, Event

KEPT: Final = 30
"""Attempts that are remembered of a job and those that it was redriven from; older ones are forgotten."""
SHORT_CHARS: Final = 200
"""What is left of a text in a letter that is too large."""
TOLD: Final = ("started", "retrying")
"""The types of events that tell of attempts."""


def attempts_of(events: Iterable[Event], *, cause: dict[str, Any] | None, given_up_ms: int) -> list[AttemptRecord]:
    """One record for each attempt that the events tell of, in order.

    Args:
        cause: Why the last attempt failed, when the job was given up on right after it; its own event tells nothing
            then. None where its worker was lost.
    """
    attempts: list[AttemptRecord] = []
    for event in events:
        if event.type == "started":
            begun = _begun(event)
            if attempts and attempts[-1]["attempt"] == event.attempt:
                # Told again: the newest one knows the container that the call went to, the first one the moment.
                begun["started_ms"] = attempts.pop()["started_ms"]
            attempts.append(begun)
        elif event.type == "retrying" and attempts and attempts[-1]["attempt"] == event.attempt:
            _end(attempts[-1], event.data.get("error"), event.time_ms)
    if cause is not None and attempts and attempts[-1]["ended_ms"] is None:
        _end(attempts[-1], cause, given_up_ms)
    return attempts


def newest_stderr(attempts: Sequence[AttemptRecord]) -> str:
    """The last lines of the last attempt that told any."""
    told = [str((attempt["error"] or {}).get("stderr") or "") for attempt in reversed(attempts)]
    return next(filter(None, told), "")


def newest_digest(attempts: Sequence[AttemptRecord]) -> str:
    """The image of the last attempt whose image is known."""
    return next((attempt["image_digest"] for attempt in reversed(attempts) if attempt["image_digest"]), "")


def within(attempts: Sequence[AttemptRecord], room: int) -> list[AttemptRecord]:
    """As much of a history as fits into `room` bytes of a message; of its last attempt at least the number.

    What stands elsewhere or is large goes first: stderr, then the errors, then the oldest attempts.
    """
    kept = list(attempts[-KEPT:])
    if _size(kept) > room:
        kept = [_without(attempt, "stderr") for attempt in kept]
    if _size(kept) > room:
        kept = [AttemptRecord(**{**attempt, "error": None}) for attempt in kept]
    while len(kept) > 1 and _size(kept) > room:
        del kept[0]
    return kept


def fitted(letter: DeadLetter, limit: int) -> DeadLetter:
    """`letter` in at most `limit` bytes.

    The job's message is the last to be cut, and only where it has no room even so: no job can be made of it then.
    """
    for shorten in (_less_history, _less_stderr, _less_error, _less_payload):
        excess = len(letter.encode()) - limit
        if excess <= 0:
            break
        letter = letter.model_copy(update=shorten(letter, excess))
    return letter


def _less_history(letter: DeadLetter, excess: int) -> dict[str, Any]:
    return {"attempts": within(letter.attempts, max(0, _size(letter.attempts) - excess))}


def _less_stderr(letter: DeadLetter, excess: int) -> dict[str, Any]:
    return {"stderr": letter.stderr[-SHORT_CHARS:]}


def _less_error(letter: DeadLetter, excess: int) -> dict[str, Any]:
    reason = letter.reason[:SHORT_CHARS]
    return {"reason": reason, "error": {"type": letter.error.get("type"), "message": reason}}


def _less_payload(letter: DeadLetter, excess: int) -> dict[str, Any]:
    return {"payload": letter.payload[: max(0, len(letter.payload) - excess)]}


def _begun(started: Event) -> AttemptRecord:
    told = {name: str(started.data.get(name, "")) for name in ("worker", "engine", "container", "image_digest")}
    return AttemptRecord(
        attempt=started.attempt,
        worker=told["worker"],
        engine=told["engine"],
        container=told["container"],
        image_digest=told["image_digest"],
        started_ms=started.time_ms,
        ended_ms=None,
        error=None,
    )


def _end(attempt: AttemptRecord, error: Any, time_ms: int) -> None:
    attempt["error"] = error if isinstance(error, dict) else None
    attempt["ended_ms"] = time_ms


def _without(attempt: AttemptRecord, detail: str) -> AttemptRecord:
    error = attempt["error"]
    slim = {name: value for name, value in error.items() if name != detail} if error else error
    return AttemptRecord(**{**attempt, "error": slim})


def _size(attempts: Sequence[AttemptRecord]) -> int:
    try:
        return len(msgpack.packb(list(attempts)))
    except (ValueError, OverflowError):
        return len(repr(attempts).encode("utf-8", "surrogatepass"))  # told by a tool: `DeadLetter.encode` says it anew
