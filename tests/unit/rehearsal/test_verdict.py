"""The counting of the rehearsal: each thing that must not happen is found, and a clean run has nothing."""

from __future__ import annotations

from dataclasses import replace

from tests.rehearsal.deployment import Exit
from tests.rehearsal.load import Call, Seen
from tests.rehearsal.verdict import Evidence, Row, Verdict, judge

SESSION = "s-1"
ROLL = (100.0, 200.0)


def call(job: str, begun: float = 110.0, took_s: float = 0.5, **facts: object) -> Call:
    made = Call("quick", SESSION, begun, begun + took_s, job, attempts=1)
    for name, value in facts.items():
        setattr(made, name, value)
    return made


def evidence() -> Evidence:
    """Two calls, one before the roll and one during it; all that is stored was told and recorded."""
    return Evidence(
        calls=[call("a", begun=50.0, took_s=0.25), call("b")],
        seen=[Seen(SESSION, 0, [1, 2, 3, 4], ["a", "b"])],
        stored={SESSION: [Row(1, "a", False), Row(2, "a", True), Row(3, "b", False), Row(4, "b", True)]},
        exits=[Exit("worker-1 (old)", 0, 2.5, "")],
        rolled=8,
        roll_begun=ROLL[0],
        roll_ended=ROLL[1],
    )


def counts(verdict: Verdict) -> tuple[int, int, int]:
    return verdict.lost, verdict.failed_calls, verdict.doubled


def with_seen(**changes: object) -> Evidence:
    clean = evidence()
    return replace(clean, seen=[replace(clean.seen[0], **changes)])  # type: ignore[arg-type]


def test_a_clean_run_has_no_violation_and_its_latencies_are_kept_apart() -> None:
    verdict = judge(evidence())

    assert verdict.violations == []
    assert counts(verdict) == (0, 0, 0)
    figures = verdict.as_dict(old="x", new="y")
    assert (figures["p99_ms_before"], figures["p99_ms_during"]) == (250.0, 500.0)
    assert (figures["calls"], figures["sessions"], figures["rolled"], figures["slowest_exit_s"]) == (2, 1, 8, 2.5)


def test_a_call_that_meets_the_roll_counts_as_during_it_and_one_after_it_as_neither() -> None:
    meets, after = call("a", begun=99.0, took_s=2.0), call("b", begun=201.0)

    verdict = judge(replace(evidence(), calls=[meets, after]))

    assert verdict.before_ms == {}
    assert verdict.during_ms == {"quick": [2000.0]}


def test_a_failed_call_is_counted_and_has_no_latency() -> None:
    verdict = judge(replace(evidence(), calls=[call("a"), call("b", fault="outcome_unknown")]))

    assert counts(verdict) == (0, 1, 0)
    assert verdict.during_ms == {"quick": [500.0]}
    assert "outcome_unknown" in verdict.violations[0]


def test_a_job_without_an_end_is_lost() -> None:
    clean = evidence()
    verdict = judge(replace(clean, stored={SESSION: clean.stored[SESSION][:-1]}))

    assert counts(verdict) == (1, 0, 0)
    assert "1 jobs without an end: b" in verdict.violations[0]


def test_a_stored_event_that_the_client_was_not_told_is_lost_unless_it_is_from_before_its_session() -> None:
    assert counts(judge(with_seen(numbers=[1, 2, 4]))) == (1, 0, 0)
    assert counts(judge(with_seen(numbers=[3, 4], start_seq=2))) == (0, 0, 0)


def test_a_call_that_is_not_in_the_conversation_is_lost_and_one_that_is_there_twice_is_doubled() -> None:
    assert counts(judge(with_seen(recorded=["a"]))) == (1, 0, 0)
    assert counts(judge(with_seen(recorded=["a", "b", "b"]))) == (0, 0, 1)


def test_a_second_end_and_a_job_that_nobody_called_and_an_event_told_again_are_doubled() -> None:
    clean = evidence()
    twice = {SESSION: [*clean.stored[SESSION], Row(5, "b", True)]}
    sent_again = {SESSION: [*clean.stored[SESSION], Row(5, "c", True)]}

    assert counts(judge(replace(with_seen(numbers=[1, 2, 3, 4, 5]), stored=twice))) == (0, 0, 1)
    assert counts(judge(replace(with_seen(numbers=[1, 2, 3, 4, 5]), stored=sent_again))) == (0, 0, 1)
    assert counts(judge(with_seen(numbers=[1, 2, 2, 3, 4]))) == (0, 0, 1)


def test_events_out_of_order_and_a_process_that_did_not_end_in_order_and_any_other_fault_are_violations() -> None:
    assert len(judge(with_seen(numbers=[2, 1, 3, 4])).violations) == 1
    stuck = judge(replace(evidence(), exits=[Exit("worker-1 (old)", 70, 55.0, "not stopped in time")]))
    assert len(stuck.violations) == 1
    assert "not stopped in time" in stuck.violations[0]
    assert judge(replace(evidence(), faults=["container left: c-1"])).violations == ["container left: c-1"]
