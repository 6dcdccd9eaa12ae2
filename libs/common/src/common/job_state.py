"""A job's life as one table: in which state what may happen, and what is stored then. Pure.

Whoever acts on a job (the gateway that accepts or cancels it, the worker that runs it, the sweeper that ends what
nobody takes) asks this table. The state of a job is told by its newest event alone; the store's fence makes sure that
it is the newest. The diagram in docs/architecture.md is made of this table by `python -m common.job_state`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from common.schema import EventType, Outcome


class State(Enum):
    NEW = "new"
    """No event of it is stored: not accepted yet, or all of it is past the resume window."""
    QUEUED = "queued"
    RUNNING = "running"
    """An attempt has started, and nothing has told how it ended."""
    RETRYING = "retrying"
    """An attempt has failed, nothing of it runs any more, and the next one may start."""
    ENDED = "ended"
    """Its terminal event is stored."""


class Signal(Enum):
    """What can happen to a job."""

    ACCEPT = "accept"
    """The gateway stores it."""
    START = "start"
    """A worker begins an attempt."""
    REPORT = "report"
    """The tool told something: progress or output."""
    FAIL = "fail"
    """The attempt failed and may be repeated: it did not reach the tool, or the tool is repeatable."""
    SUCCEED = "succeed"
    REFUSE = "refuse"
    """The tool answered with an error, or could not be run at all."""
    TIME_OUT = "time out"
    """Start-to-close or heartbeat: the tool was stopped, with proof."""
    CANCEL = "cancel"
    """A client asked for it."""
    STOP = "stop"
    """Proof that nothing of a cancelled job runs."""
    EXPIRE = "expire"
    """Schedule-to-start: no worker took it in time."""
    LOSE = "lose"
    """Its worker or its tool's process was lost, and it may not be run again."""
    GIVE_UP = "give up"
    """No attempt is left, or nobody can run it: it cannot be read, or its server was removed."""


@dataclass(frozen=True)
class Transition:
    to: State
    stores: EventType | None
    """The event by which the job gets there; None where nothing is stored, because nothing changes."""
    outcome: Outcome | None = None
    """Of a `result` event."""


class IllegalTransition(Exception):
    """That cannot happen to a job in this state; nothing has changed."""

    def __init__(self, state: State, signal: Signal) -> None:
        self.state = state
        self.signal = signal
        super().__init__(f"a job that is {state.value} cannot {signal.value}")


def _end(outcome: Outcome) -> Transition:
    return Transition(State.ENDED, "result", outcome)


_NOTHING: Final = Transition(State.ENDED, None)

TRANSITIONS: Final[dict[tuple[State, Signal], Transition]] = {
    (State.NEW, Signal.ACCEPT): Transition(State.QUEUED, "queued"),
    # Older than the resume window, so that its `queued` event is gone: as if it were queued.
    (State.NEW, Signal.START): Transition(State.RUNNING, "started"),
    (State.NEW, Signal.REFUSE): _end("failed"),
    (State.NEW, Signal.EXPIRE): _end("timed_out"),
    # Delivered again, and so old that its `started` event may be gone as well.
    (State.NEW, Signal.LOSE): _end("outcome_unknown"),
    (State.NEW, Signal.GIVE_UP): _end("dead_lettered"),
    (State.QUEUED, Signal.START): Transition(State.RUNNING, "started"),
    (State.QUEUED, Signal.REFUSE): _end("failed"),
    (State.QUEUED, Signal.CANCEL): _end("cancelled"),
    (State.QUEUED, Signal.EXPIRE): _end("timed_out"),
    (State.QUEUED, Signal.GIVE_UP): _end("dead_lettered"),
    (State.RUNNING, Signal.START): Transition(State.RUNNING, "started"),  # the next attempt: the last one was lost
    (State.RUNNING, Signal.REPORT): Transition(State.RUNNING, "progress"),
    (State.RUNNING, Signal.FAIL): Transition(State.RETRYING, "retrying"),
    (State.RUNNING, Signal.SUCCEED): _end("succeeded"),
    (State.RUNNING, Signal.REFUSE): _end("failed"),
    (State.RUNNING, Signal.TIME_OUT): _end("timed_out"),
    (State.RUNNING, Signal.CANCEL): Transition(State.RUNNING, "cancelling"),
    (State.RUNNING, Signal.STOP): _end("cancelled"),
    (State.RUNNING, Signal.LOSE): _end("outcome_unknown"),
    (State.RUNNING, Signal.GIVE_UP): _end("dead_lettered"),
    (State.RETRYING, Signal.START): Transition(State.RUNNING, "started"),
    (State.RETRYING, Signal.REFUSE): _end("failed"),
    (State.RETRYING, Signal.CANCEL): _end("cancelled"),
    (State.RETRYING, Signal.EXPIRE): _end("timed_out"),
    (State.RETRYING, Signal.GIVE_UP): _end("dead_lettered"),
    # Too late, whatever it is: a job ends once.
    (State.ENDED, Signal.CANCEL): _NOTHING,
    (State.ENDED, Signal.START): _NOTHING,
    (State.ENDED, Signal.EXPIRE): _NOTHING,
    (State.ENDED, Signal.LOSE): _NOTHING,
    (State.ENDED, Signal.GIVE_UP): _NOTHING,
}

_STATE_AFTER: Final[dict[EventType | None, State]] = {
    None: State.NEW,
    "queued": State.QUEUED,
    "started": State.RUNNING,
    "progress": State.RUNNING,
    "output": State.RUNNING,
    "step": State.RUNNING,
    "decision": State.NEW,  # stands beside the job's own events, before its turn has it accepted
    "cancelling": State.RUNNING,
    "retrying": State.RETRYING,
    "result": State.ENDED,
}


def state_after(newest: EventType | None) -> State:
    """The state of a job whose newest event is of that type; None where it has none."""
    return _STATE_AFTER[newest]


def step(state: State, signal: Signal) -> Transition:
    """
    Raises:
        IllegalTransition: if that cannot happen in this state.
    """
    try:
        return TRANSITIONS[state, signal]
    except KeyError:
        raise IllegalTransition(state, signal) from None


def diagram() -> str:
    """The table as a Mermaid state diagram; transitions with the same ends share an arrow."""
    arrows: dict[tuple[State, State], list[str]] = {}
    for (state, signal), transition in TRANSITIONS.items():
        if transition.stores is None:
            continue
        said = signal.value if transition.outcome is None else f"{signal.value} ({transition.outcome})"
        arrows.setdefault((state, transition.to), []).append(said)
    lines = [f"    {state.value} --> {to.value}: {', '.join(said)}" for (state, to), said in arrows.items()]
    first, last = State.NEW.value, State.ENDED.value
    return "\n".join(["stateDiagram-v2", f"    [*] --> {first}", *lines, f"    {last} --> [*]"])


if __name__ == "__main__":
    print(diagram())
