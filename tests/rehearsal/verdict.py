"""What a rehearsal has shown: every job, every event and every message counted once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from benchmarks.command import percentile

from tests.rehearsal.deployment import Exit
from tests.rehearsal.load import Call, Seen

QUICK, KEPT = "quick", "kept"
SHOWN = 12

T = TypeVar("T")


class Row(NamedTuple):
    """An event as it is stored."""

    seq: int
    job: str
    terminal: bool


@dataclass(frozen=True)
class Evidence:
    """All that a verdict is made of."""

    calls: Sequence[Call]
    seen: Sequence[Seen]
    stored: Mapping[str, Sequence[Row]]
    """By session."""
    exits: Sequence[Exit]
    rolled: int
    roll_begun: float
    roll_ended: float
    faults: Sequence[str] = ()
    """What must not happen and has no name here."""


@dataclass
class Verdict:
    """Counts; what must not be stands in `violations` too, readable."""

    calls: int = 0
    sessions: int = 0
    rolled: int = 0
    lost: int = 0
    """Accepted jobs without an end, stored events that their client was not told, calls that are not recorded."""
    failed_calls: int = 0
    doubled: int = 0
    """Second ends of a job, jobs that no client has called, events that were told again, messages recorded twice."""
    repeated: int = 0
    """Calls with more than one attempt: allowed, where the tool may be repeated."""
    states_lost: int = 0
    """Containers that sessions lost with their workers, each told by the session's next call."""
    violations: list[str] = field(default_factory=list)
    before_ms: dict[str, list[float]] = field(default_factory=dict)
    during_ms: dict[str, list[float]] = field(default_factory=dict)
    """Latencies of the calls in a lane that ended before the roll began; of those that met it."""
    slowest_exit_s: float = 0.0

    def as_dict(self, **more: Any) -> dict[str, Any]:
        """The last line of the rehearsal."""
        return {
            "lost": self.lost,
            "failed_calls": self.failed_calls,
            "calls": self.calls,
            "sessions": self.sessions,
            "rolled": self.rolled,
            "p99_ms_before": _percentile(self.before_ms, QUICK, 99),
            "p99_ms_during": _percentile(self.during_ms, QUICK, 99),
            "p50_ms_before": _percentile(self.before_ms, QUICK, 50),
            "p50_ms_during": _percentile(self.during_ms, QUICK, 50),
            "kept_p50_ms_before": _percentile(self.before_ms, KEPT, 50),
            "kept_p50_ms_during": _percentile(self.during_ms, KEPT, 50),
            "kept_p99_ms_before": _percentile(self.before_ms, KEPT, 99),
            "kept_p99_ms_during": _percentile(self.during_ms, KEPT, 99),
            "doubled": self.doubled,
            "repeated": self.repeated,
            "states_lost": self.states_lost,
            "violations": len(self.violations),
            "slowest_exit_s": round(self.slowest_exit_s, 1),
            **more,
        }


def judge(evidence: Evidence) -> Verdict:
    """Count."""
    verdict = Verdict(calls=len(evidence.calls), sessions=len(evidence.seen), rolled=evidence.rolled)
    _judge_calls(evidence, verdict)
    for seen in evidence.seen:
        calls = [call for call in evidence.calls if call.session == seen.session]
        _judge_session(seen, calls, evidence.stored.get(seen.session, ()), verdict)
    for left in evidence.exits:
        if left.code != 0:
            verdict.violations.append(f"{left}:\n{left.log_tail}")
    verdict.slowest_exit_s = max((left.took_s for left in evidence.exits), default=0.0)
    verdict.violations += [*evidence.faults, *(fault for seen in evidence.seen for fault in seen.faults)]
    return verdict


def _judge_calls(evidence: Evidence, verdict: Verdict) -> None:
    for call in evidence.calls:
        verdict.repeated += call.attempts > 1
        verdict.states_lost += call.state_lost
        if call.fault:
            verdict.failed_calls += 1
            at_s = call.begun - evidence.roll_begun
            where = f"session {call.session}, job {call.job or 'unknown'}, {at_s:+.1f} s from the roll's start"
            verdict.violations.append(f"{call.lane} call failed: {call.fault} ({where}, after {call.took_ms:.0f} ms)")
        elif call.ended < evidence.roll_begun:
            verdict.before_ms.setdefault(call.lane, []).append(call.took_ms)
        elif call.begun < evidence.roll_ended:
            verdict.during_ms.setdefault(call.lane, []).append(call.took_ms)


def _judge_session(seen: Seen, calls: Sequence[Call], rows: Sequence[Row], verdict: Verdict) -> None:
    called = {call.job for call in calls if call.job}
    ends = Counter(row.job for row in rows if row.terminal)
    numbers = Counter(seen.numbers)
    recorded = Counter(seen.recorded)
    lost: dict[str, set[Any]] = {
        "jobs without an end": called - ends.keys(),
        "events that were not told": {row.seq for row in rows if row.seq > seen.start_seq} - numbers.keys(),
        "calls that are not recorded": called - recorded.keys(),
    }
    doubled: dict[str, set[Any]] = {
        "jobs that ended again": _again(ends),
        "jobs that nobody has called": {row.job for row in rows} - called,
        "events that were told again": _again(numbers),
        "calls that are recorded again": _again(recorded),
    }
    for what, which in {**lost, **doubled}.items():
        if which:
            shown = [*map(str, which)][:SHOWN]
            verdict.violations.append(f"session {seen.session}: {len(which)} {what}: {', '.join(shown)}")
    verdict.lost += sum(map(len, lost.values()))
    verdict.doubled += sum(map(len, doubled.values()))
    if seen.numbers != sorted(seen.numbers):
        verdict.violations.append(f"session {seen.session}: events were told out of order")


def _again(counts: Mapping[T, int]) -> set[T]:
    return {each for each, times in counts.items() if times > 1}


def _percentile(values: Mapping[str, list[float]], lane: str, percent: int) -> float:
    return percentile(values[lane], percent) if values.get(lane) else 0.0
