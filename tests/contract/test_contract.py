"""The contract of docs/architecture.md under random interleavings, against a model, on a real store."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import Flaky
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from tests.contract.machine import ContractMachine
from tests.contract.model import ContractBroken
from tests.contract.mutants import FOUND_BY_SEARCH, FOUND_BY_STORY, Mutate, Story
from tests.contract.world import Example, World, world

pytestmark = pytest.mark.timeout(300)  # a fault is made smaller before it is told

EXAMPLES = settings(max_examples=80, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck))
SEARCH = settings(
    EXAMPLES, max_examples=300, phases=[Phase.generate], database=None, derandomize=True, report_multiple_bugs=False
)


@pytest.fixture
def a_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with world(tmp_path, monkeypatch) as made:
        yield made


def run_examples(a_world: World, how: settings) -> None:
    def machine() -> ContractMachine:
        return ContractMachine(a_world)

    # Any factory will do; hypothesis' annotation knows of classes only.
    run_state_machine_as_test(cast(type[RuleBasedStateMachine], machine), settings=how)


def tell(a_world: World, story: Story) -> None:
    example = Example(a_world)
    try:
        story(example)
        example.drain()
    finally:
        example.abandon()


def test_no_interleaving_breaks_the_contract(a_world: World) -> None:
    """Whatever crashes, freezes, is cancelled or expires, and in which order."""
    run_examples(a_world, EXAMPLES)


@pytest.mark.parametrize("mutate", FOUND_BY_SEARCH, ids=lambda mutate: mutate.__name__)
def test_a_product_without_one_clause_is_found_out(
    a_world: World, mutate: Mutate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By random interleavings; or the test above would prove nothing."""
    mutate(monkeypatch)

    with pytest.raises((ContractBroken, Flaky)):
        run_examples(a_world, SEARCH)

    assert a_world.faults
    for fault in a_world.faults:
        assert re.search(FOUND_BY_SEARCH[mutate], fault), fault


@pytest.mark.parametrize("mutate", FOUND_BY_STORY, ids=lambda mutate: mutate.__name__)
def test_a_rare_interleaving_breaks_the_contract_only_without_its_clause(
    a_world: World, mutate: Mutate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that a search may take minutes to come upon."""
    story, says = FOUND_BY_STORY[mutate]
    tell(a_world, story)
    mutate(monkeypatch)

    with pytest.raises(ContractBroken, match=says):
        tell(a_world, story)
