"""Whoever ends a job tells it in one line, with all that is known of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from common import headers, subjects
from common.bus import Bus
from common.cancelling import cancel_job
from common.dead_letters import GivenUp
from common.ending import Ending
from common.errors import Fenced
from common.job_end import end_job
from common.job_line import JobFacts, tell_job_ended
from common.schema import SessionRecord, now_ms
from common.streams import JOBS, SESSIONS_BUCKET
from tests.job_lines import JobLines, job_lines
from tests.unit.common.bus_rig import SERVER, SESSION, counted, make_event, make_job

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def told() -> Iterator[JobLines]:
    with job_lines() as lines:
        yield lines


def test_a_line_has_whose_it_was_how_it_ended_and_where_the_time_went(told: JobLines) -> None:
    """The metrics of the stages are those of the line."""
    job = make_job(server="of-one-line", tenant="acme", created_ms=now_ms() - 5_000)
    stages = {"queue_ms": 10, "acquire_ms": 20.5, "tool_ms": 3_000.25}

    tell_job_ended(JobFacts.of(job, TRACEPARENT), 2, "failed", "server_gone", stages)

    [line] = told.of(job.id)
    assert 5_000 <= line.pop("total_ms") < 6_000
    assert line == {
        "event": "job ended",
        "log_level": "info",
        "module": "common.job_line",
        "session": job.session,
        "job": job.id,
        "attempt": 2,
        "trace": "0af7651916cd43dd8448eb211c80319c",
        "tenant": "acme",
        "server": "of-one-line",
        "tool": "echo",
        "outcome": "failed",
        "error": "server_gone",
        **stages,
    }
    for name, seconds in [("queue", 0.01), ("acquire", 0.0205), ("tool", 3.00025)]:
        assert counted(f"job_{name}_seconds_sum", server="of-one-line") == pytest.approx(seconds)
    assert 5 <= counted("job_total_seconds_sum", server="of-one-line") < 6
    assert counted("jobs_ended_total", server="of-one-line", outcome="failed") == 1


def test_a_job_that_did_not_run_has_no_stages(told: JobLines) -> None:
    """Null in the line, and nothing in the metrics: a zero would make the others look short."""
    tell_job_ended(JobFacts(SESSION, "j1", "of-no-stage"), 0, "dead_lettered", "undecodable_message")

    [line] = told.of("j1")
    assert [line[name] for name in ("queue_ms", "acquire_ms", "tool_ms", "total_ms")] == [None] * 4
    assert (line["tenant"], line["tool"]) == ("", "")
    for name in ("queue", "acquire", "tool", "total"):
        assert counted(f"job_{name}_seconds_count", server="of-no-stage") == 0


async def test_a_waiting_job_that_is_cancelled_is_told_once(bus: Bus, told: JobLines) -> None:
    """By who cancels it; to cancel it again tells nothing."""
    record = SessionRecord(tenant="acme", created_ms=now_ms())
    await bus.put(SESSIONS_BUCKET, SESSION, record.encode())
    job = make_job()
    await bus.enqueue_job(job)
    await cancel_job(bus, SESSION, job.id)
    await cancel_job(bus, SESSION, job.id)

    [line] = told.of(job.id)
    assert (line["outcome"], line["error"], line["attempt"]) == ("cancelled", None, 0)
    assert (line["tenant"], line["server"], line["tool"]) == ("acme", SERVER, "echo")
    assert line["total_ms"] >= 0


async def test_an_end_that_the_store_refuses_is_not_told(bus: Bus, told: JobLines) -> None:
    """Another one's event came first: it is that one's to tell."""
    await bus.publish_event(make_event("j1", "started"), expected=0)

    with pytest.raises(Fenced):
        await end_job(bus, JobFacts(SESSION, "j1", SERVER), None, Ending("cancelled"))

    assert told.of("j1") == []


async def test_a_job_that_is_buried_is_told_once_however_often(bus: Bus, told: JobLines) -> None:
    """Beside the line of its letter, which is another thing: an operator's, and redriven."""
    job = make_job(tenant="acme")
    error = {"type": "server_removed", "message": "the server was removed"}
    message = GivenUp(subjects.jobs(SERVER, SESSION), job.encode(), error, 1, job.id, traceparent=TRACEPARENT)
    await bus.give_up(message)
    await bus.give_up(message)

    [line] = told.of(job.id)
    assert (line["outcome"], line["error"]) == ("dead_lettered", "server_removed")
    assert (line["tenant"], line["server"], line["tool"]) == ("acme", SERVER, "echo")
    assert line["trace"] == "0af7651916cd43dd8448eb211c80319c"


async def test_a_message_that_nobody_can_read_ends_its_job_with_a_line(bus: Bus, told: JobLines) -> None:
    """With what its subject and its header say."""
    js = bus.client.jetstream()
    await js.publish(subjects.jobs(SERVER, SESSION), b"\xc1", headers={headers.MSG_ID: "unreadable"})
    message = await js.get_msg(JOBS, seq=1)
    await bus.bury(message, {"type": "undecodable_message", "message": "not msgpack"})

    [line] = told.of("unreadable")
    assert (line["outcome"], line["error"], line["server"]) == ("dead_lettered", "undecodable_message", SERVER)
