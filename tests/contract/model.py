"""The contract as plain Python: what is known of each job, and what may be stored of it next."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from common.feed import StoredEvent
from common.job_state import TRANSITIONS, State
from common.schema import Event, Outcome
from tests.contract.clock import Clock
from tests.contract.tools import IMPATIENT, SOON_S, HeldCall, Ledger, read_only, repeatable
from worker.redelivery import MAX_ATTEMPTS

SPOKEN: Final = frozenset({"succeeded", "failed"})
"""Outcomes that an answer of the tool has."""
TOLD_AS: Final = {"output": "progress"}


class ContractBroken(AssertionError):
    """Something was stored or done that the contract rules out."""


@dataclass
class ModelJob:
    """A job as the contract knows it."""

    id: str
    tool: str
    key: str | None
    accepted_ms: int
    state: State = State.NEW
    attempt: int = 0
    outcome: Outcome | None = None
    started_by: dict[int, str] = field(default_factory=dict)
    """Worker by attempt."""
    story: list[str] = field(default_factory=list)
    """What was stored, for the report of a fault."""
    cancel_asked: bool = False
    faults: set[str] = field(default_factory=set)
    """What has befallen it that may cost it an attempt: a crash, a freeze, a lost server."""
    unsupplied: bool = False
    """No container could be started for it."""

    @property
    def repeatable(self) -> bool:
        return repeatable(self.tool)

    @property
    def running(self) -> bool:
        return self.state in (State.RUNNING, State.RETRYING)

    def judge_acknowledged(self) -> None:
        """
        Raises:
            ContractBroken: if its terminal event was not stored before.
        """
        if self.state is not State.ENDED:
            raise self.break_off("acknowledged before its end is stored")

    def break_off(self, what: str) -> ContractBroken:
        return ContractBroken(f"job {self.id} ({self.tool}): {what}; stored: {' '.join(self.story)}")


class Model:
    """All jobs of one session."""

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self.jobs: dict[str, ModelJob] = {}
        self.keys: dict[str, str] = {}
        self.last_seq = 0
        self._ledger = ledger
        self._clock = clock

    def new_key(self) -> str:
        return f"key-{len(self.keys)}"

    def accept(self, job: str, tool: str, key: str | None) -> ModelJob:
        """A call was answered with this job.

        Raises:
            ContractBroken: if a key stands for another job, or a job for another call.
        """
        if key is not None and self.keys.setdefault(key, job) != job:
            raise ContractBroken(f"key {key} stands for {self.keys[key]} and for {job}")
        known = self.jobs.get(job)
        if known is None:
            known = self.jobs[job] = ModelJob(job, tool, key, self._clock.now_ms())
        elif key is None or known.key != key:
            raise ContractBroken(f"job {job} was accepted twice")
        return known

    # --- what is stored -------------------------------------------------------------------------------

    def see(self, stored: StoredEvent) -> None:
        """
        Raises:
            ContractBroken: if this event may not follow what is stored.
        """
        if stored.seq <= self.last_seq:
            raise ContractBroken(f"event {stored.seq} came after {self.last_seq}")
        self.last_seq = stored.seq
        event = stored.event
        job = self.jobs.get(event.job)
        if job is None:
            raise ContractBroken(f"an event of job {event.job}, which was never accepted")
        job.story.append(f"{event.type}[{event.attempt}]" + (f"={event.data['outcome']}" if event.terminal else ""))
        if event.type == "cancelling":
            # Beside the others: it may come when the job has ended just now.
            if not job.cancel_asked:
                raise job.break_off("a cancel that nobody asked for")
            return
        self._follow(job, event)

    def _follow(self, job: ModelJob, event: Event) -> None:
        if job.state is State.ENDED:
            raise job.break_off("an event after the terminal one")
        if event.attempt < job.attempt:
            raise job.break_off("an event of an attempt that was over")
        if event.attempt > MAX_ATTEMPTS:
            raise job.break_off("one attempt too many")
        type_ = TOLD_AS.get(event.type, event.type)
        ways = [
            transition
            for (state, _), transition in TRANSITIONS.items()
            if state is job.state
            and transition.stores == type_
            and transition.outcome == (event.data["outcome"] if event.terminal else None)
        ]
        if not ways:
            raise job.break_off(f"no way leads there from {job.state.value}")
        if event.type == "started" and event.attempt == job.attempt and "since_ms" in event.data:
            _require(job, event.data["worker"] == job.started_by[event.attempt], "another worker's attempt goes on")
        elif event.type == "started":
            if event.attempt != job.attempt + 1:
                raise job.break_off("an attempt that does not follow the one before")
            job.started_by[event.attempt] = event.data["worker"]
        elif event.attempt != job.attempt:
            raise job.break_off("an event of an attempt that has not started")
        if event.terminal:
            self._judge(job, event)
            job.outcome = event.data["outcome"]
        job.state = ways[0].to
        job.attempt = event.attempt

    # --- how it ends ----------------------------------------------------------------------------------

    def _judge(self, job: ModelJob, event: Event) -> None:
        """Is this end one that the contract allows, after all that has befallen the job?"""
        outcome = event.data["outcome"]
        error: dict[str, Any] = event.data.get("error") or {}
        if "result" in event.data:
            self._judge_answer(job, event)
        elif outcome == "failed":
            _require(job, job.unsupplied and error["type"] == "container_start_failed", "a failure of nobody")
        elif outcome == "cancelled":
            _require(job, job.cancel_asked, "a cancel that nobody asked for")
            _require(job, not self._still_runs(job), "cancelled, and its tool is at work on it")
        elif outcome == "timed_out":
            late = job.tool in IMPATIENT and self._clock.now_ms() >= job.accepted_ms + SOON_S * 1000
            _require(job, late, "its time to wait was not over")
            _require(job, job.state in (State.QUEUED, State.RETRYING), "it was not waiting")
        elif outcome == "outcome_unknown":
            _require(job, bool(job.faults), "nothing has befallen it")
            _require(job, not job.repeatable or job.cancel_asked, "it may be repeated")
            if error["type"] == "outcome_unknown":
                _require(job, error["worker"] == job.started_by[event.attempt], "another worker ran it")
                _require(job, not error["retryable"], "the caller is told to repeat it")
        elif outcome == "dead_lettered":
            _require(job, len(job.faults) > 0, "nothing has befallen it")
            _require(job, event.attempt == MAX_ATTEMPTS == len(job.started_by), "attempts were left")
        else:
            raise job.break_off(f"an answer without what was answered: {outcome}")

    def _judge_answer(self, job: ModelJob, event: Event) -> None:
        number = int(event.data["result"]["content"][0]["text"])
        call = next((call for call in self._ledger.of(job.id) if call.number == number), None)
        _require(job, call is not None, "an answer that was given to another job")
        assert call is not None
        _require(job, call.said == event.data["outcome"], f"its tool {call.said}")
        _require(job, call.worker == job.started_by[event.attempt], "an answer to another attempt")

    def _still_runs(self, job: ModelJob) -> bool:
        """Of a read-only tool a call may run for a moment (docs/adr/0008); of an older attempt of an idempotent one,
        in the container of a lost worker, until the reaper comes."""
        calls = self._ledger.of(job.id)
        return bool(calls) and not read_only(job.tool) and _newest(calls).runs

    def judge_executions(self) -> None:
        """
        Raises:
            ContractBroken: if a tool was run more often than it may be.
        """
        for job in self.jobs.values():
            calls = self._ledger.of(job.id)
            if not job.repeatable:
                _require(job, len(calls) <= 1, f"run {len(calls)} times, and it may not be repeated")
            elif not read_only(job.tool):
                _require(job, len(calls) <= len(job.started_by), f"run {len(calls)} times")

    def judge_the_end(self) -> None:
        """All that could happen has happened.

        Raises:
            ContractBroken: if a job has not ended, or not as it had to.
        """
        for job in self.jobs.values():
            _require(job, job.state is State.ENDED, "it never ends")
            late = job.tool in IMPATIENT
            if not (job.faults or job.cancel_asked or job.unsupplied or late):
                _require(job, job.outcome in SPOKEN, "nothing has befallen it, and its answer is lost")
                _require(job, job.attempt == 1, "it was run again without need")


def _newest(calls: list[HeldCall]) -> HeldCall:
    return calls[-1]


def _require(job: ModelJob, holds: bool, else_: str) -> None:
    if not holds:
        raise job.break_off(else_)
