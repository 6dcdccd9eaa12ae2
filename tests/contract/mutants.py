"""The product with one clause of the contract taken out: what the test of the contract must find."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest

import gateway.jobs
import gateway.sweeper
import worker.redelivery
import worker.runner
from common import subjects
from common.bus import Bus
from common.event_log import EventLog
from common.feed import StoredEvent
from common.job_state import State, state_after
from common.schema import Event, EventType, Job
from tests.contract.tools import Supply
from tests.contract.world import Example
from worker.grip import Grip
from worker.journal import Journal
from worker.outbox import Outbox
from worker.proof import Proof
from worker.redelivery import MAX_ATTEMPTS, Drop, Start, Step
from worker.runner import Runner

Mutate = Callable[[pytest.MonkeyPatch], None]
Story = Callable[[Example], None]

_publish_event = EventLog.publish_event
_run = Runner._run
_append = Journal.append


def a_fenced_worker_goes_on(patch: pytest.MonkeyPatch) -> None:
    """It takes the job back from the worker that runs it."""

    async def start_again(self: Runner, job: Job) -> Step:
        newest = await self._bus.last_event(job.session, job.id)
        if newest is None or newest.event.terminal:
            return Drop()
        return Start(newest.event.attempt + 1, newest.fence)

    patch.setattr(Runner, "_yield", start_again)


def the_store_has_no_fence(patch: pytest.MonkeyPatch) -> None:
    """Events are stored behind whatever is there."""

    async def publish(self: EventLog, event: Event, *, expected: int, msg_id: str | None = None) -> int:
        if event.type not in ("queued", "cancelling"):
            newest: StoredEvent | None = await self.last_event(event.session, event.job)
            expected = newest.fence if newest else 0
        return await _publish_event(self, event, expected=expected, msg_id=msg_id)

    patch.setattr(EventLog, "publish_event", publish)


def every_tool_is_repeated(patch: pytest.MonkeyPatch) -> None:
    def decide(past: worker.redelivery.Past, **facts: Any) -> Step:
        return worker.redelivery.decide(past, **{**facts, "repeatable": True})

    patch.setattr(worker.runner, "decide", decide)


def a_job_is_acknowledged_when_it_comes(patch: pytest.MonkeyPatch) -> None:
    async def run(self: Runner, held: Any, server: Any, source: Any) -> None:
        await held.delivery.ack()
        await _run(self, held, server, source)

    patch.setattr(Runner, "_run", run)


def a_result_is_not_stored(patch: pytest.MonkeyPatch) -> None:
    async def append(self: Journal, type_: EventType, data: dict[str, Any]) -> None:
        if type_ != "result":
            await _append(self, type_, data)

    patch.setattr(Journal, "append", append)


def a_container_is_not_ended_for_a_cancel(patch: pytest.MonkeyPatch) -> None:
    async def let_run(self: Grip) -> None:
        """Return at once."""

    patch.setattr(Grip, "end", let_run)


def a_second_container_is_not_told(patch: pytest.MonkeyPatch) -> None:
    """`started` names a container that the call never reached."""

    async def keep(self: Outbox, data: dict[str, Any]) -> None:
        """Tell nothing."""

    patch.setattr(Outbox, "started_elsewhere", keep)


def a_lost_worker_counts_as_proof(patch: pytest.MonkeyPatch) -> None:
    async def is_dead(self: Proof, started: Event) -> bool:
        return True

    patch.setattr(Proof, "is_dead", is_dead)


def attempts_have_no_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(worker.redelivery, "MAX_ATTEMPTS", MAX_ATTEMPTS + 1)


def the_sweeper_ends_what_runs(patch: pytest.MonkeyPatch) -> None:
    def state(newest: EventType | None) -> State:
        found = state_after(newest)
        return State.QUEUED if found is State.RUNNING else found

    patch.setattr(gateway.sweeper, "state_after", state)


def a_key_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    async def claim(bus: Bus, session: str, key: str, print_: str) -> tuple[str, bool]:
        return subjects.new_job_id(), True

    patch.setattr(gateway.jobs, "claim", claim)


def a_lost_job_stays_lost(patch: pytest.MonkeyPatch) -> None:
    """A worker leaves what another one has begun."""

    def decide(past: worker.redelivery.Past, **facts: Any) -> Step:
        decided = worker.redelivery.decide(past, **facts)
        return worker.redelivery.Leave() if past.state is State.RUNNING else decided

    patch.setattr(worker.runner, "decide", decide)


# --- stories that a search seldom comes upon ------------------------------------------------------------------


def a_worker_thaws_when_another_one_runs_its_job(example: Example) -> None:
    frozen, other = example.workers
    example.call("send")
    example.deliver(frozen, Supply(comes="later"))
    frozen.settle()
    [source] = example.held_sources()
    frozen.frozen = True
    example.let_all_lapse(frozen)
    example.deliver(other, Supply())
    other.settle()
    frozen.frozen = False
    source.go_on()
    frozen.settle()
    example.look()


def a_server_does_not_confirm_a_stop(example: Example) -> None:
    job = example.call("send")
    example.deliver(example.workers[0], Supply())
    example.workers[0].settle()
    example.look()
    example.cancel(job)
    example.settle_together()
    [call] = example.ledger.stopping()
    call.confirm(False)
    example.settle_together()
    example.look()


def no_container_lives_until_its_call(example: Example) -> None:
    example.call("send")
    example.deliver(example.workers[0], Supply(dead=99))
    example.workers[0].settle()
    example.look()


def a_worker_is_lost_whose_call_went_to_a_second_container(example: Example) -> None:
    lost, other = example.workers
    job = example.call("put")
    example.deliver(lost, Supply(dead=1))
    lost.settle()
    example.look()
    example.crash(lost)
    example.let_all_lapse(lost)
    example.cancel(job)
    example.deliver(other, Supply())
    other.settle()
    example.look()


FOUND_BY_SEARCH: Final[dict[Mutate, str]] = {
    the_store_has_no_fence: "an attempt that was over|does not follow|after the terminal one|no way leads|run 2 times",
    every_tool_is_repeated: "run 2 times",
    a_job_is_acknowledged_when_it_comes: "acknowledged before its end is stored",
    a_result_is_not_stored: "acknowledged before its end is stored",
    a_lost_worker_counts_as_proof: "its tool is at work on it",
    the_sweeper_ends_what_runs: "it was not waiting",
    a_key_is_forgotten: "never accepted|stands for",
    a_lost_job_stays_lost: "it never ends",
}
"""And what is found: one of these, depending on what came first."""

FOUND_BY_STORY: Final[dict[Mutate, tuple[Story, str]]] = {
    a_fenced_worker_goes_on: (a_worker_thaws_when_another_one_runs_its_job, "run 2 times"),
    a_container_is_not_ended_for_a_cancel: (a_server_does_not_confirm_a_stop, "its tool is at work on it"),
    a_second_container_is_not_told: (
        a_worker_is_lost_whose_call_went_to_a_second_container,
        "its tool is at work on it",
    ),
    attempts_have_no_end: (no_container_lives_until_its_call, "one attempt too many"),
}
