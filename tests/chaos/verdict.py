"""The verdict: what was promised against what is stored, seen and written down. By counting every job; no I/O.

- `jobs`: accepted ones, those whose id came in an answer.
- `lost`: accepted jobs without a terminal event.
- `duplicated_terminals`: terminal events beyond the first of a job, of all that is stored.
- `double_executions`: executions beyond the first of a call of a tool that may not be repeated, by the ledger.
- `outcome_unknown`: jobs that ended so; `unexplained_unknown` are those that no fault explains: none that struck the
  job's worker, its connection, its tool process, the Docker daemon or the store between its start and its end.
- `recovered_p50_s`, `recovered_p99_s`: over every job that had started on a worker when that was killed, and had not
  ended: seconds from the SIGKILL to its next `started` or its terminal event, less `ack_wait` (and never below 0).
  `recovered_alone_p99_s` is over those `recovered_alone` of them in whose time nothing else struck that a recovery
  needs: the store (whose nodes take 4 to 9 s to elect a leader), the Docker daemon, another worker or its connection.
- `events_missed`, `events_repeated`: for each session, what its client has seen against what is stored after its
  start. A session that its client has left may lack the end.
- `disordered`: events out of order for their client or their job: a lower number after a higher one, an older attempt
  after a newer one, anything after the terminal event.
- `untrue_ends`: a call that ended without having started, but was executed; one of a tool with an effect that
  succeeded, and was not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final, NamedTuple

from tests.chaos.client import Seen
from tests.chaos.load import Submission
from tests.chaos.schedule import Action, Kind, Target

NOT_REPEATABLE: Final = "pay"
WITH_EFFECT: Final = ("put", "pay")
NEAR_MS: Final = 1000
"""How long before a job's start and after its end a fault counts as near: events carry the wall clock of their
writer from before they were stored, and a fault's consequences take a moment."""
SHOWN_EVENTS: Final = 12
RECOVERY_WITHIN_S: Final = 5.0
"""The aim for `recovered_p99_s`."""
STORE_FAULTS: Final = (Target.NATS,)
ENGINE_FAULTS: Final = (Target.DOCKERD,)
NEEDED: Final = (Target.NATS, Target.DOCKERD, Target.WORKER, Target.WORKER_LINK)
"""What takes part in the recovery of a lost worker's jobs."""


@dataclass
class Strike:
    """A fault that was done."""

    kind: Kind
    name: str
    begin_ms: int
    end_ms: int = 0
    """0 as long as it lasts."""
    worker: str = ""
    """The worker's own id, if it struck one."""
    container: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name} {self.worker} at {self.begin_ms} for {self.end_ms - self.begin_ms} ms"

    def overlaps(self, begin_ms: int, end_ms: int) -> bool:
        return self.begin_ms <= end_ms + NEAR_MS and begin_ms - NEAR_MS <= (self.end_ms or self.begin_ms)


class Row(NamedTuple):
    """An event as it is stored."""

    seq: int
    job: str
    attempt: int
    type: str
    time_ms: int
    outcome: str = ""
    worker: str = ""
    container: str = ""

    @property
    def terminal(self) -> bool:
        return self.type == "result"

    @property
    def told_by_gateway(self) -> bool:
        """Stored under a subject of its own (docs/adr/0002), so that it may come late: beside the worker's events."""
        return self.type == "queued" or (self.type == "progress" and self.attempt == 0)


@dataclass(frozen=True)
class Evidence:
    """All that a verdict is made of."""

    submissions: Sequence[Submission]
    stored: Mapping[str, Sequence[Row]]
    """By session, in the order of their numbers."""
    seen: Sequence[Seen]
    executions: Mapping[str, int]
    """By key: of tools with an effect."""
    strikes: Sequence[Strike]
    ack_wait_s: float
    containers_left: Sequence[str] = ()
    processes_left: Sequence[str] = ()
    leases_left: Sequence[str] = ()
    other_faults: Sequence[str] = ()
    """What must not happen and has no name here: a process that ended by itself, an answer that nothing explains."""


@dataclass
class Verdict:
    """Counts; each that is not to be has its violations, readable, in `violations`."""

    jobs: int = 0
    kills: int = 0
    lost: int = 0
    duplicated_terminals: int = 0
    double_executions: int = 0
    outcome_unknown: int = 0
    recovered_p50_s: float = 0.0
    recovered_p99_s: float = 0.0
    recovered_alone: int = 0
    recovered_alone_p99_s: float = 0.0
    leaked_containers: int = 0
    events_missed: int = 0
    events_repeated: int = 0
    disordered: int = 0
    untrue_ends: int = 0
    unexplained_unknown: int = 0
    processes_left: int = 0
    leases_left: int = 0
    other_faults: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    explained_by: Counter[str] = field(default_factory=Counter)
    """The faults that explain an unknown outcome, by kind; one outcome may have several."""
    recovered_s: list[float] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)
    """Recoveries above RECOVERY_WITHIN_S, readable; no violation, as it is the machine's matter too."""
    violations: list[str] = field(default_factory=list)

    def as_dict(self, seed: int, **more: Any) -> dict[str, Any]:
        """The last line of the run."""
        return {
            "jobs": self.jobs,
            "kills": self.kills,
            "lost": self.lost,
            "duplicated_terminals": self.duplicated_terminals,
            "double_executions": self.double_executions,
            "outcome_unknown": self.outcome_unknown,
            "recovered_p50_s": self.recovered_p50_s,
            "recovered_p99_s": self.recovered_p99_s,
            "leaked_containers": self.leaked_containers,
            "seed": seed,
            "recovered_alone": self.recovered_alone,
            "recovered_alone_p99_s": self.recovered_alone_p99_s,
            "events_missed": self.events_missed,
            "events_repeated": self.events_repeated,
            "disordered": self.disordered,
            "untrue_ends": self.untrue_ends,
            "unexplained_unknown": self.unexplained_unknown,
            "processes_left": self.processes_left,
            "leases_left": self.leases_left,
            "other_faults": self.other_faults,
            **more,
        }


class _Case:
    """The evidence, indexed."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.by_job: dict[str, list[Row]] = {}
        self.session_of: dict[str, str] = {}
        for session, rows in evidence.stored.items():
            for row in rows:
                self.by_job.setdefault(row.job, []).append(row)
                self.session_of[row.job] = session
        self.accepted = {each.job: each for each in evidence.submissions if each.job}

    def describe(self, job: str) -> str:
        """A job with its last events and the faults that were near."""
        rows = self.by_job.get(job, [])
        submission = self.accepted.get(job)
        session = submission.session if submission else self.session_of.get(job, "?")
        what = f"{submission.server}/{submission.tool} key {submission.key}" if submission else "not accepted"
        lines = [f"job {job} of session {session} ({what})"]
        lines += [
            f"    {row.seq} {row.type} attempt {row.attempt} at {row.time_ms} {row.worker}{row.outcome} {row.container}"
            for row in rows[-SHOWN_EVENTS:]
        ]
        begin_ms = rows[0].time_ms if rows else submission.asked_ms if submission else 0
        end_ms = rows[-1].time_ms if rows else begin_ms + int(2000 * self.evidence.ack_wait_s)
        lines += [f"    near: {strike}" for strike in self.evidence.strikes if strike.overlaps(begin_ms, end_ms)]
        return "\n".join(lines)


def judge(evidence: Evidence) -> Verdict:
    """Count."""
    verdict = Verdict()
    case = _Case(evidence)
    verdict.jobs = len(case.accepted)
    verdict.kills = sum(1 for strike in evidence.strikes if strike.kind.action is Action.KILL)
    _judge_ends(case, verdict)
    _judge_executions(case, verdict)
    _judge_unknown(case, verdict)
    _judge_order(case, verdict)
    for seen in evidence.seen:
        _judge_seen(seen, evidence.stored.get(seen.session, ()), verdict)
    _measure_recovery(case, verdict)
    verdict.leaked_containers = _left("container", evidence.containers_left, verdict)
    verdict.processes_left = _left("process", evidence.processes_left, verdict)
    verdict.leases_left = _left("lease", evidence.leases_left, verdict)
    verdict.other_faults = len(evidence.other_faults)
    verdict.violations += evidence.other_faults
    return verdict


def _left(what: str, left: Sequence[str], verdict: Verdict) -> int:
    verdict.violations += [f"{what} left: {each}" for each in left]
    return len(left)


def _judge_ends(case: _Case, verdict: Verdict) -> None:
    for job in case.accepted:
        if not any(row.terminal for row in case.by_job.get(job, ())):
            verdict.lost += 1
            verdict.violations.append(f"lost: {case.describe(job)}")
    for job, rows in case.by_job.items():
        ends = [row for row in rows if row.terminal]
        if len(ends) > 1:
            verdict.duplicated_terminals += len(ends) - 1
            verdict.violations.append(f"ended {len(ends)} times: {case.describe(job)}")
        if ends and job in case.accepted:
            verdict.outcomes[ends[0].outcome] += 1


def _judge_executions(case: _Case, verdict: Verdict) -> None:
    for submission in case.evidence.submissions:
        executions = case.evidence.executions.get(submission.key, 0)
        if submission.tool == NOT_REPEATABLE and executions > 1:
            verdict.double_executions += executions - 1
            verdict.violations.append(f"executed {executions} times: {_describe(case, submission)}")
        end = next((row for row in case.by_job.get(submission.job, ()) if row.terminal), None)
        if end is None or submission.tool not in WITH_EFFECT:
            continue
        never_started = not any(row.type == "started" for row in case.by_job[submission.job])
        if never_started and executions:
            verdict.untrue_ends += 1
            verdict.violations.append(f"executed without having started: {_describe(case, submission)}")
        if end.outcome == "succeeded" and not executions:
            verdict.untrue_ends += 1
            verdict.violations.append(f"succeeded without having been executed: {_describe(case, submission)}")


def _describe(case: _Case, submission: Submission) -> str:
    return case.describe(submission.job) if submission.job else f"{submission}"


def _judge_unknown(case: _Case, verdict: Verdict) -> None:
    for job, rows in case.by_job.items():
        end = next((row for row in rows if row.terminal), None)
        if end is None or end.outcome != "outcome_unknown":
            continue
        verdict.outcome_unknown += 1
        started = next((row for row in reversed(rows) if row.type == "started"), None)
        causes = _causes(started, end, case.evidence.strikes) if started else []
        verdict.explained_by.update({str(strike.kind) for strike in causes})
        if not causes:
            verdict.unexplained_unknown += 1
            verdict.violations.append(f"unknown outcome that no fault explains: {case.describe(job)}")


def _causes(started: Row, end: Row, strikes: Iterable[Strike]) -> list[Strike]:
    return [
        strike
        for strike in strikes
        if strike.overlaps(started.time_ms, end.time_ms)
        and (
            strike.kind.target in (*STORE_FAULTS, *ENGINE_FAULTS)
            or (strike.worker and strike.worker == started.worker)
            or (strike.container and strike.container == started.container)
        )
    ]


def _judge_order(case: _Case, verdict: Verdict) -> None:
    """What the gateways tell is apart: of a job that waits, and that a client wants one stopped, which may have lost
    its race with the end."""
    for job, rows in case.by_job.items():
        own = [row for row in rows if not row.told_by_gateway]
        attempts = [row.attempt for row in own]
        late = [row for earlier, row in pairwise(own) if earlier.terminal and row.type != "cancelling"]
        if attempts != sorted(attempts) or late:
            verdict.disordered += 1
            verdict.violations.append(f"stored out of order: {case.describe(job)}")


def _judge_seen(seen: Seen, rows: Sequence[Row], verdict: Verdict) -> None:
    """What is missing, what came twice, what came out of order."""
    numbers = [event.seq for event in seen.events]
    repeated = len(numbers) - len(set(numbers))
    if repeated:
        verdict.events_repeated += repeated
        twice = sorted(number for number, times in Counter(numbers).items() if times > 1)
        verdict.violations.append(f"session {seen.session} saw events again: {twice[:SHOWN_EVENTS]}")
    if numbers != sorted(numbers):
        verdict.disordered += 1
        verdict.violations.append(f"session {seen.session} saw events out of order")
    stored = [row for row in rows if row.seq > seen.start_seq]
    if seen.left:
        stored = [row for row in stored if row.seq <= max(numbers, default=0)]
    have = set(numbers)
    missed = [row for row in stored if row.seq not in have]
    if missed:
        verdict.events_missed += len(missed)
        shown = [f"{row.seq} {row.type} of {row.job} at {row.time_ms}" for row in missed[:SHOWN_EVENTS]]
        verdict.violations.append(f"session {seen.session} missed {len(missed)} events: {shown}")
    if seen.gaps:
        verdict.events_missed += len(seen.gaps)
        verdict.violations.append(f"session {seen.session} was resumed without `recovered`: {'; '.join(seen.gaps)}")
    _judge_content(seen, rows, verdict)


def _judge_content(seen: Seen, rows: Sequence[Row], verdict: Verdict) -> None:
    """What was seen is what is stored, but for `queued` events of calls that were refused (docs/protocol.md)."""
    stored = {row.seq: (row.job, row.attempt, row.type) for row in rows}
    for event in seen.events:
        known = stored.get(event.seq)
        if known is None and event.type == "queued":
            continue
        if known != (event.job, event.attempt, event.type):
            verdict.disordered += 1
            verdict.violations.append(f"session {seen.session} saw {event}, stored is {known}")


def _measure_recovery(case: _Case, verdict: Verdict) -> None:
    kills = {
        strike.worker: strike
        for strike in case.evidence.strikes
        if strike.kind == Kind(Action.KILL, Target.WORKER) and strike.worker
    }
    alone_s: list[float] = []
    for rows in case.by_job.values():
        for number, row in enumerate(rows):
            kill = kills.get(row.worker) if row.type == "started" else None
            if kill is None or row.time_ms > kill.begin_ms:
                continue
            killed_ms = kill.begin_ms
            after = [later for later in rows[number + 1 :] if later.type == "started" or later.terminal]
            if after and after[0].time_ms > killed_ms:
                recovered_s = (after[0].time_ms - killed_ms) / 1000 - case.evidence.ack_wait_s
                verdict.recovered_s.append(max(0.0, recovered_s))
                if not any(
                    strike is not kill and strike.kind.target in NEEDED and strike.overlaps(killed_ms, after[0].time_ms)
                    for strike in case.evidence.strikes
                ):
                    alone_s.append(max(0.0, recovered_s))
                if recovered_s > RECOVERY_WITHIN_S:
                    verdict.slow.append(f"{recovered_s:.1f} s after ack_wait: {case.describe(row.job)}")
    verdict.recovered_s.sort()
    verdict.recovered_p50_s = _quantile(verdict.recovered_s, 0.50)
    verdict.recovered_p99_s = _quantile(verdict.recovered_s, 0.99)
    verdict.recovered_alone = len(alone_s)
    verdict.recovered_alone_p99_s = _quantile(sorted(alone_s), 0.99)


def _quantile(values: list[float], part: float) -> float:
    """The smallest value that so large a part of all does not exceed; 0 if there is none."""
    if not values:
        return 0.0
    return round(values[max(0, -(-len(values) * int(part * 100) // 100) - 1)], 3)
