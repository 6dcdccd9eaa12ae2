"""The verdict of the fault run: a run without fault has none, and each violation is found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.chaos.client import Seen, SeenEvent
from tests.chaos.load import Submission
from tests.chaos.schedule import Action, Kind, Target
from tests.chaos.verdict import Evidence, Row, Strike, Verdict, judge

START_MS = 1_000_000


def rows_of(job: str, first_seq: int, *, at_ms: int = START_MS, **end: Any) -> list[Row]:
    """A job that ran once: queued, started, ended."""
    return [
        Row(first_seq, job, 0, "queued", at_ms),
        Row(first_seq + 1, job, 1, "started", at_ms + 10, worker="w-1", container="c-1"),
        Row(first_seq + 2, job, 1, "result", at_ms + 500, **{"outcome": "succeeded", **end}),
    ]


def seen_of(session: str, rows: list[Row], start_seq: int = 0) -> Seen:
    events = [SeenEvent(row.seq, row.job, row.attempt, row.type) for row in rows]
    return Seen(session, "epoch", start_seq, events)


def submission(job: str, tool: str = "pay", key: str = "") -> Submission:
    return Submission(key or f"key of {job}", "s", "shared", tool, START_MS, job=job, accepted_ms=START_MS)


def evidence(**changes: Any) -> Evidence:
    """Two jobs of one session, both ended, both seen; with `changes`."""
    rows = rows_of("a", 1) + rows_of("b", 4)
    base = Evidence(
        submissions=[submission("a"), submission("b", "look")],
        stored={"s": rows},
        seen=[seen_of("s", rows)],
        executions={"key of a": 1},
        strikes=[],
        ack_wait_s=2.0,
    )
    return replace(base, **changes)


def counts(verdict: Verdict) -> dict[str, Any]:
    """What is not 0."""
    return {name: value for name, value in verdict.as_dict(0).items() if value and name not in ("jobs", "seed")}


def test_a_run_without_a_violation_has_none() -> None:
    """Or nothing below would show anything."""
    verdict = judge(evidence())

    assert verdict.jobs == 2
    assert counts(verdict) == {}
    assert verdict.violations == []
    assert verdict.outcomes == {"succeeded": 2}


def test_the_figures_begin_with_those_that_others_read() -> None:
    """In this order, by these names."""
    assert list(judge(evidence()).as_dict(7))[:10] == [
        "jobs",
        "kills",
        "lost",
        "duplicated_terminals",
        "double_executions",
        "outcome_unknown",
        "recovered_p50_s",
        "recovered_p99_s",
        "leaked_containers",
        "seed",
    ]


@pytest.mark.parametrize("rows", [rows_of("a", 1)[:2], []], ids=["no terminal event", "no event at all"])
def test_an_accepted_job_without_a_terminal_event_is_lost(rows: list[Row]) -> None:
    """Whether it had started or left no trace."""
    found = evidence(submissions=[submission("a")], stored={"s": rows}, seen=[seen_of("s", rows)])
    verdict = judge(found)

    assert counts(verdict) == {"lost": 1}
    assert "job a of session s" in verdict.violations[0]


def test_a_job_that_was_never_accepted_is_not_lost() -> None:
    """Its client got no answer, and was promised nothing."""
    asked = replace(submission("a"), job="")

    assert counts(judge(evidence(submissions=[asked], stored={"s": []}, seen=[]))) == {}


def test_a_second_terminal_event_is_found() -> None:
    """Also of a job that nobody knows of."""
    rows = [*rows_of("x", 1), Row(9, "x", 1, "result", START_MS + 900, "failed")]

    assert counts(judge(evidence(submissions=[], stored={"s": rows}, seen=[]))) == {
        "duplicated_terminals": 1,
        "disordered": 1,
    }


@pytest.mark.parametrize(("tool", "found"), [("pay", {"double_executions": 2}), ("put", {}), ("look", {})])
def test_a_call_that_may_not_be_repeated_is_executed_once(tool: str, found: dict[str, int]) -> None:
    """By the ledger, which the system knows nothing of."""
    rows = rows_of("a", 1)
    verdict = judge(
        evidence(
            submissions=[submission("a", tool)],
            stored={"s": rows},
            seen=[seen_of("s", rows)],
            executions={"key of a": 3},
        )
    )

    assert counts(verdict) == found


def test_a_call_that_was_never_accepted_is_not_executed_twice_either() -> None:
    """Nobody was promised that it runs, but nobody asked twice."""
    asked = replace(submission("a"), job="")
    found = evidence(submissions=[asked], stored={"s": []}, seen=[], executions={"key of a": 2})

    assert counts(judge(found)) == {"double_executions": 1}


def test_a_call_that_ended_without_having_started_was_not_executed() -> None:
    """`cancelled` while queued means that nothing of it ran."""
    rows = [Row(1, "a", 0, "queued", START_MS), Row(2, "a", 0, "result", START_MS + 5, "cancelled")]
    found = evidence(submissions=[submission("a")], stored={"s": rows}, seen=[seen_of("s", rows)])

    assert counts(judge(found)) == {"untrue_ends": 1}
    assert counts(judge(replace(found, executions={}))) == {}


def test_a_call_that_succeeded_was_executed() -> None:
    """An answer that no tool gave is a lie."""
    assert counts(judge(evidence(executions={}))) == {"untrue_ends": 1}


class TestOutcomeUnknown:
    """An unknown outcome needs a fault that explains it."""

    ROWS = rows_of("a", 1, outcome="outcome_unknown")

    def judged(self, *strikes: Strike) -> dict[str, Any]:
        verdict = judge(
            evidence(
                submissions=[submission("a")],
                stored={"s": self.ROWS},
                seen=[seen_of("s", self.ROWS)],
                strikes=strikes,
            )
        )
        return {name: value for name, value in counts(verdict).items() if "unknown" in name}

    def strike(self, target: Target, of: dict[str, str], at_ms: int = START_MS + 100) -> Strike:
        return Strike(Kind(Action.FREEZE, target), "name", at_ms, at_ms + 50, **of)

    def test_none_is_a_violation(self) -> None:
        """It is counted twice: as what it is, and as unexplained."""
        assert self.judged() == {"outcome_unknown": 1, "unexplained_unknown": 1}

    @pytest.mark.parametrize(
        ("target", "of"),
        [
            (Target.WORKER, {"worker": "w-1"}),
            (Target.WORKER_LINK, {"worker": "w-1"}),
            (Target.TOOL, {"container": "c-1"}),
            (Target.DOCKERD, {}),
            (Target.NATS, {}),
        ],
    )
    def test_one_of_its_worker_its_tool_the_engine_or_the_store_explains_it(
        self, target: Target, of: dict[str, str]
    ) -> None:
        """While it ran."""
        assert self.judged(self.strike(target, of)) == {"outcome_unknown": 1}

    @pytest.mark.parametrize(
        ("target", "of"),
        [
            (Target.WORKER, {"worker": "w-2"}),
            (Target.WORKER_LINK, {"worker": "w-2"}),
            (Target.TOOL, {"container": "c-2"}),
            (Target.GATEWAY, {}),
            (Target.GATEWAY_LINK, {}),
            (Target.CLIENT_LINK, {}),
            (Target.CLIENT, {}),
        ],
    )
    def test_one_of_anything_else_does_not(self, target: Target, of: dict[str, str]) -> None:
        """A gateway and a client have no part in running a job."""
        assert self.judged(self.strike(target, of)) == {"outcome_unknown": 1, "unexplained_unknown": 1}

    @pytest.mark.parametrize("at_ms", [START_MS - 5000, START_MS + 5000])
    def test_one_before_or_after_does_not(self, at_ms: int) -> None:
        """It has to fall into the time in which the job ran."""
        strike = self.strike(Target.WORKER, {"worker": "w-1"}, at_ms)

        assert self.judged(strike) == {"outcome_unknown": 1, "unexplained_unknown": 1}


class TestSeen:
    """What a client saw is what is stored."""

    ROWS = rows_of("a", 1) + rows_of("b", 4)

    def judged(self, *numbers: int, start_seq: int = 0, left: bool = False) -> dict[str, Any]:
        by_number = {row.seq: row for row in self.ROWS}
        seen = seen_of("s", [by_number[number] for number in numbers], start_seq)
        seen.left = left
        return counts(judge(evidence(seen=[seen])))

    def test_a_missing_event_is_found(self) -> None:
        """In the middle as at the end."""
        assert self.judged(1, 2, 4, 5, 6) == {"events_missed": 1}
        assert self.judged(1, 2, 3, 4) == {"events_missed": 2}

    def test_an_event_that_came_twice_is_found(self) -> None:
        """Even where it came at once."""
        assert self.judged(1, 2, 3, 3, 4, 5, 6) == {"events_repeated": 1}

    def test_events_out_of_order_are_found(self) -> None:
        """A lower number after a higher one."""
        assert self.judged(1, 3, 2, 4, 5, 6) == {"disordered": 1}

    def test_what_was_before_the_session_was_opened_need_not_come(self) -> None:
        """The answer to `session/open` says from where on."""
        assert self.judged(4, 5, 6, start_seq=3) == {}

    def test_a_session_that_was_left_may_lack_the_end_but_nothing_before(self) -> None:
        """Its client had asked for no more."""
        assert self.judged(1, 2, 3, left=True) == {}
        assert self.judged(1, 3, left=True) == {"events_missed": 1}

    def test_an_event_that_is_not_what_is_stored_is_found(self) -> None:
        """Under its number there is another one."""
        seen = seen_of("s", self.ROWS)
        seen.events[4] = seen.events[4]._replace(attempt=2)

        assert counts(judge(evidence(seen=[seen]))) == {"disordered": 1}

    def test_an_event_that_is_not_stored_is_found(self) -> None:
        """But for the `queued` event of a call that was refused (docs/protocol.md)."""
        refused = seen_of("s", [*self.ROWS, Row(7, "c", 0, "queued", START_MS)])
        invented = seen_of("s", [*self.ROWS, Row(7, "c", 1, "started", START_MS)])

        assert counts(judge(evidence(seen=[refused]))) == {}
        assert counts(judge(evidence(seen=[invented]))) == {"disordered": 1}

    def test_a_resume_that_was_not_recovered_is_a_loss(self) -> None:
        """The store keeps everything for longer than the run takes."""
        seen = seen_of("s", self.ROWS)
        seen.gaps.append("from 5")

        assert counts(judge(evidence(seen=[seen]))) == {"events_missed": 1}


def test_an_older_attempt_after_a_newer_one_is_found() -> None:
    """The fence keeps it out."""
    rows = [
        Row(1, "a", 0, "queued", START_MS),
        Row(2, "a", 2, "started", START_MS + 10, worker="w-2"),
        Row(3, "a", 1, "progress", START_MS + 20),
        Row(4, "a", 2, "result", START_MS + 30, "succeeded"),
    ]
    found = evidence(submissions=[submission("a")], stored={"s": rows}, seen=[seen_of("s", rows)])

    assert counts(judge(found)) == {"disordered": 1}


def test_the_queued_event_may_be_stored_late() -> None:
    """It has a subject of its own and is sent beside the job (docs/adr/0002)."""
    rows = rows_of("a", 1)
    late = [rows[1]._replace(seq=1), rows[0]._replace(seq=2), rows[2]]
    found = evidence(submissions=[submission("a")], stored={"s": late}, seen=[seen_of("s", late)])

    assert counts(judge(found)) == {}


def test_a_waiting_jobs_position_may_be_stored_late() -> None:
    """It has a subject of its own too: a gateway that froze in between tells what its job's end has overtaken."""
    rows = rows_of("a", 1)
    late = [*rows, Row(4, "a", 0, "progress", START_MS + 600)]
    found = evidence(submissions=[submission("a")], stored={"s": late}, seen=[seen_of("s", late)])

    assert counts(judge(found)) == {}


def test_what_is_left_is_counted() -> None:
    """Containers, processes, leases, and whatever else must not be."""
    verdict = judge(
        evidence(containers_left=["c"], processes_left=["p", "q"], leases_left=["l"], other_faults=["crash"])
    )

    assert counts(verdict) == {"leaked_containers": 1, "processes_left": 2, "leases_left": 1, "other_faults": 1}
    assert len(verdict.violations) == 5


class TestRecovery:
    """From the kill of a worker to the next word of its jobs, less the heartbeat timeout."""

    KILLED_MS = START_MS + 1000

    def judged(self, *after: Row, killed: str = "w-1") -> Verdict:
        rows = [*rows_of("a", 1)[:2], *after]
        strike = Strike(Kind(Action.KILL, Target.WORKER), "worker-1", self.KILLED_MS, worker=killed)
        return judge(
            evidence(
                submissions=[submission("a", "look")], stored={"s": rows}, seen=[seen_of("s", rows)], strikes=[strike]
            )
        )

    def test_is_the_time_to_the_next_start_or_end(self) -> None:
        """Whichever comes first."""
        started = Row(8, "a", 2, "started", self.KILLED_MS + 3500, worker="w-2")
        ended = Row(9, "a", 2, "result", self.KILLED_MS + 9000, "succeeded")

        assert self.judged(started, ended).recovered_s == [1.5]
        assert self.judged(ended._replace(attempt=1, outcome="failed")).recovered_s == [7.0]
        assert self.judged(started, ended).kills == 1

    def test_is_never_below_zero(self) -> None:
        """A job whose heartbeat was old at the kill is delivered again sooner than ack_wait after it."""
        assert self.judged(Row(9, "a", 2, "result", self.KILLED_MS + 900, "succeeded")).recovered_s == [0.0]

    def test_leaves_out_what_had_ended_and_what_ran_elsewhere(self) -> None:
        """Those were not struck."""
        ended = Row(9, "a", 1, "result", self.KILLED_MS - 1, "succeeded")

        assert self.judged(ended).recovered_s == []
        assert self.judged(ended._replace(time_ms=self.KILLED_MS + 900), killed="w-2").recovered_s == []

    @pytest.mark.parametrize(
        ("target", "at_ms", "alone"),
        [(Target.NATS, 2000, 0), (Target.DOCKERD, 3000, 0), (Target.NATS, 9000, 1), (Target.CLIENT, 2000, 1)],
        ids=["store", "engine", "store, later", "client"],
    )
    def test_tells_those_apart_in_whose_time_nothing_else_struck_that_they_need(
        self, target: Target, at_ms: int, alone: int
    ) -> None:
        """What a cluster needs to elect a leader is no matter of the worker's."""
        rows = [*rows_of("a", 1)[:2], Row(8, "a", 2, "started", self.KILLED_MS + 3500, worker="w-2")]
        kill = Strike(Kind(Action.KILL, Target.WORKER), "worker-1", self.KILLED_MS, worker="w-1")
        other = Strike(Kind(Action.KILL, target), "other", self.KILLED_MS + at_ms)
        verdict = judge(
            evidence(
                submissions=[submission("a", "look")],
                stored={"s": rows},
                seen=[seen_of("s", rows)],
                strikes=[kill, other],
            )
        )

        assert verdict.recovered_s == [1.5]
        assert (verdict.recovered_alone, verdict.recovered_alone_p99_s) == (alone, 1.5 * alone)

    def test_names_the_slow_ones(self) -> None:
        """A person wants to know why."""
        verdict = self.judged(Row(9, "a", 2, "result", self.KILLED_MS + 9000, "succeeded"))

        assert verdict.recovered_p99_s == 7.0
        assert "job a" in verdict.slow[0]

    def test_quantiles_are_values_that_occurred(self) -> None:
        """The 99th of a hundred, the 50th of a hundred."""
        rows: list[Row] = []
        submissions = []
        for number in range(1, 101):
            job = f"j{number}"
            rows += [
                Row(number * 10, job, 1, "started", START_MS, worker="w-1"),
                Row(number * 10 + 1, job, 1, "result", START_MS + 2000 + number * 100, "succeeded"),
            ]
            submissions.append(submission(job, "look"))
        strike = Strike(Kind(Action.KILL, Target.WORKER), "worker-1", START_MS, worker="w-1")
        verdict = judge(evidence(submissions=submissions, stored={"s": rows}, seen=[], strikes=[strike]))

        assert (verdict.recovered_p50_s, verdict.recovered_p99_s) == (5.0, 9.9)
