"""The table of a job's life: complete, closed, and drawn in the documentation as it is."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import get_args

import pytest

from common.job_state import TRANSITIONS, IllegalTransition, Signal, State, diagram, state_after, step
from common.schema import EventType, Outcome

ARCHITECTURE = Path(__file__).parents[3] / "docs/architecture.md"


@pytest.mark.parametrize(("state", "signal"), list(product(State, Signal)), ids=lambda each: each.value)
def test_each_signal_in_each_state_is_a_transition_or_refused(state: State, signal: Signal) -> None:
    """What is stored leads to the state that the table says."""
    if (state, signal) not in TRANSITIONS:
        with pytest.raises(IllegalTransition, match=f"a job that is {state.value} cannot {signal.value}"):
            step(state, signal)
        return
    transition = step(state, signal)
    if transition.stores is None:
        assert transition.to is state
    else:
        assert state_after(transition.stores) is transition.to


@pytest.mark.parametrize("signal", list(Signal), ids=lambda each: each.value)
def test_nothing_is_stored_of_a_job_that_has_ended(signal: Signal) -> None:
    """There is one terminal event."""
    transition = TRANSITIONS.get((State.ENDED, signal))

    assert transition is None or (transition.to, transition.stores) == (State.ENDED, None)


def test_only_a_result_has_an_outcome_and_every_outcome_can_be_reached() -> None:
    """And a job ends by nothing else."""
    for transition in TRANSITIONS.values():
        assert (transition.outcome is not None) == (transition.stores == "result")
        assert (transition.stores == "result") == (transition.to is State.ENDED and transition.stores is not None)
    assert {t.outcome for t in TRANSITIONS.values()} - {None} == set(get_args(Outcome))


def test_every_state_is_reached_and_every_state_but_the_last_can_end() -> None:
    """No job is stuck by the table."""
    reached = {State.NEW} | {t.to for t in TRANSITIONS.values()}
    ending = {state for (state, _), t in TRANSITIONS.items() if t.stores == "result"}

    assert reached == set(State)
    assert ending == set(State) - {State.ENDED}


def test_every_type_of_event_leads_to_a_state() -> None:
    """The newest event alone tells it."""
    assert {type_: state_after(type_) for type_ in get_args(EventType)}
    assert state_after(None) is State.NEW


def test_the_diagram_in_the_documentation_is_made_of_the_table() -> None:
    """`python -m common.job_state` prints it."""
    assert f"```mermaid\n{diagram()}\n```" in ARCHITECTURE.read_text()
