"""Random interleavings of everything that can happen to jobs, each step held against the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.contract.tools import SOON_S, TOOLS, Supply
from tests.contract.world import Example, World

JOBS_AT_MOST = 4

T = TypeVar("T")

a_pick = st.integers(0, 9)
"""Which of several, counted round."""
a_tool = st.sampled_from([*sorted(TOOLS), "look", "put", "send"])
a_supply = st.one_of(
    st.just(Supply()),
    st.builds(Supply, held_at_release=st.just(True)),
    st.builds(Supply, comes=st.just("later")),
    st.builds(
        Supply,
        comes=st.sampled_from(["at once", "later", "never", "broken"]),
        dead=st.integers(0, 6),
        held_at_release=st.booleans(),
    ),
)
mostly = st.sampled_from([True, True, True, False])


def picked(pick: int, of: Sequence[T]) -> T | None:
    return of[pick % len(of)] if of else None


class ContractMachine(RuleBasedStateMachine):
    """A step that is not possible when it comes does nothing.

    Which steps come must not hang on how far the parts have got, which time decides: so there are no preconditions but
    those that the steps before decide alone.
    """

    def __init__(self, world: World) -> None:
        super().__init__()
        self.example = Example(world)

    # --- clients ----------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.example.model.jobs) < JOBS_AT_MOST)
    @rule(tool=a_tool, keyed=st.booleans(), pick=a_pick, supply=a_supply, start=mostly)
    def accept(self, tool: str, keyed: bool, pick: int, supply: Supply, start: bool) -> None:
        """Mostly a worker waits for it."""
        self.example.call(tool, self.example.model.new_key() if keyed else None)
        if start:
            self.deliver_one(pick, supply, settle=True)

    @precondition(lambda self: len(self.example.model.jobs) < JOBS_AT_MOST)
    @rule(tool=a_tool)
    def accept_twice_at_once(self, tool: str) -> None:
        self.example.call_twice_at_once(tool, self.example.model.new_key())

    @precondition(lambda self: self.example.model.keys)
    @rule(pick=a_pick)
    def accept_again(self, pick: int) -> None:
        """A client repeats its call, whatever has become of the first one."""
        if key := picked(pick, list(self.example.model.keys)):
            self.example.call(self.example.model.jobs[self.example.model.keys[key]].tool, key)

    @precondition(lambda self: self.example.model.jobs)
    @rule(pick=a_pick, started=mostly, settle=mostly)
    def cancel(self, pick: int, started: bool, settle: bool) -> None:
        jobs = list(self.example.model.jobs.values())
        if job := picked(pick, [job for job in jobs if job.running] if started else jobs):
            self.example.cancel(job)
            if settle:
                self.example.settle_together()

    # --- workers ----------------------------------------------------------------------------------------

    @rule(pick=a_pick, supply=a_supply, settle=mostly)
    def deliver(self, pick: int, supply: Supply, settle: bool) -> None:
        self.deliver_one(pick, supply, settle)

    def deliver_one(self, pick: int, supply: Supply, settle: bool) -> None:
        worker = picked(pick, self.example.live())
        if worker and self.example.deliverable():
            self.example.deliver(worker, supply)
            if settle:
                worker.settle()

    @rule(pick=a_pick, how=st.sampled_from(["alone", "together", "a little"]), turns=st.integers(1, 12))
    def go_on(self, pick: int, how: str, turns: int) -> None:
        if worker := picked(pick, self.example.busy_and_live()):
            if how == "alone":
                worker.settle()
            elif how == "together":
                self.example.settle_together()
            else:
                worker.party.turn(turns)

    @rule(pick=a_pick, silent=mostly)
    def crash(self, pick: int, silent: bool) -> None:
        """And the store finds out at once, or later."""
        if worker := picked(pick, self.example.busy()):
            self.example.crash(worker)
            if silent:
                self.example.let_all_lapse(worker)

    @rule(pick=a_pick, silent=mostly)
    def freeze(self, pick: int, silent: bool) -> None:
        """For so long that the store gives its jobs to others, or for a moment."""
        if worker := picked(pick, self.example.busy_and_live()):
            worker.frozen = True
            if silent:
                self.example.let_all_lapse(worker)

    @rule(settle=st.booleans())
    def thaw(self, settle: bool) -> None:
        for worker in self.example.frozen():
            worker.frozen = False
            if settle:
                worker.settle()

    # --- time ---------------------------------------------------------------------------------------------

    @rule(pick=a_pick)
    def ack_wait_passes(self, pick: int) -> None:
        if job := picked(pick, self.example.lapsable()):
            self.example.let_lapse(job)

    @rule(sweep=st.booleans())
    def queue_deadline_passes(self, sweep: bool) -> None:
        if self.example.impatient():
            self.example.world.clock.let_pass(SOON_S + 1)
            if sweep:
                self.example.gateway.sweep()

    @rule()
    def sweep(self) -> None:
        self.example.gateway.sweep()

    # --- tools and containers -----------------------------------------------------------------------------

    @rule(pick=a_pick, how=st.sampled_from(["tell", "succeed", "fail", "lose server"]), settle=st.booleans())
    def call_moves(self, pick: int, how: str, settle: bool) -> None:
        if call := picked(pick, self.example.ledger.running()):
            if how == "tell":
                self.example.tell(call)
            elif how == "lose server":
                self.example.lose_server(call)
            else:
                call.say("succeeded" if how == "succeed" else "failed")
            if settle:
                self.example.settle_together()

    @rule(pick=a_pick, stopped=st.booleans(), settle=mostly)
    def stop_is_answered(self, pick: int, stopped: bool, settle: bool) -> None:
        if call := picked(pick, self.example.ledger.stopping()):
            call.confirm(stopped)
            if settle:
                self.example.settle_together()

    @rule(pick=a_pick)
    def container_moves(self, pick: int) -> None:
        """The one that was waited for comes, or the one that was to be let go of goes."""
        if source := picked(pick, self.example.held_sources()):
            source.go_on()

    # --- after every step ---------------------------------------------------------------------------------

    @invariant()
    def keeps_the_contract(self) -> None:
        self.example.look()

    def teardown(self) -> None:
        try:
            if not self.example.broken:
                self.example.drain()
        finally:
            self.example.abandon()
