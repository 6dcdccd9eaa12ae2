"""What a worker does with a job, on real containers."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from common import subjects
from tests.nats_server import NatsServer
from tests.worker_rig import WorkerRig, worker_rig

pytestmark = pytest.mark.docker

CATALOG = """
servers:
  shared: {image: mcp-orchestrator/fixture:local, scope: shared, pool: {min: 1, max: 1}}
  kept: {image: mcp-orchestrator/fixture:local, scope: session, pool: {min: 1, max: 4}}
  once: {image: mcp-orchestrator/fixture:local, scope: call, pool: {min: 1, max: 4}}
  exec: {kind: exec, image: mcp-orchestrator/exec:local, scope: session, pool: {min: 1, max: 4}}
"""


@pytest.fixture
async def rig(nats_server: NatsServer, docker_host: str) -> AsyncIterator[WorkerRig]:
    async with worker_rig(nats_server.url, docker_host) as made:
        await made.apply(CATALOG)
        made.start_worker()
        for server in ("shared", "kept", "once", "exec"):
            await made.listing(server)
        yield made


async def test_a_job_is_queued_started_and_answered_in_that_order(rig: WorkerRig) -> None:
    """Each event is stored once, numbered by attempt, with what the tool said and what it ran under."""
    job = await rig.enqueue("shared", "echo", {"text": "hello"}, session=subjects.new_session_id())
    events = await rig.events(job)

    assert [(event.type, event.attempt) for event in events] == [("queued", 0), ("started", 1), ("result", 1)]
    end = events[-1].data
    assert end["outcome"] == "succeeded"
    assert end["result"]["content"] == [{"type": "text", "text": "hello"}]
    assert end["ran"]["network"] == "none"
    assert end["ran"]["image_digest"].startswith("sha256:")
    assert set(end["timings"]) == {"queue_ms", "container_ms", "tool_ms"}


async def test_progress_of_a_tool_is_stored_while_it_runs(rig: WorkerRig) -> None:
    """Progress events come before the result, in the tool's order."""
    job = await rig.enqueue("shared", "progress", {"steps": 3, "delay_ms": 20}, session=subjects.new_session_id())
    events = await rig.events(job)

    assert [event.type for event in events] == ["queued", "started", "progress", "progress", "progress", "result"]
    assert [event.data["progress"] for event in events if event.type == "progress"] == [1, 2, 3]


async def test_an_error_answer_of_the_tool_is_a_failed_job_with_the_answer_in_it(rig: WorkerRig) -> None:
    """`isError` is the tool's answer: it is told as it is."""
    end = await rig.call("shared", "fail", {"message": "no such city"})

    assert end.data["outcome"] == "failed"
    assert end.data["result"]["content"][0]["text"] == "no such city"
    assert "error" not in end.data


async def test_a_json_rpc_error_of_the_server_is_a_failed_job_with_its_code(rig: WorkerRig) -> None:
    """A protocol error carries the server's own code and message."""
    end = await rig.call("shared", "error")

    assert (end.data["outcome"], end.data["error"]["type"]) == ("failed", "tool_protocol_error")
    assert end.data["error"]["code"] == -32603


async def test_a_server_that_crashes_during_a_call_ends_that_call_and_the_next_one_works(rig: WorkerRig) -> None:
    """Its tool may not be repeated and may have taken effect: unknown, with the exit code. The pool replaces it."""
    end = await rig.call("shared", "crash")
    after = await rig.call("shared", "echo", {"text": "still here"})

    assert (end.data["outcome"], end.data["error"]["type"]) == ("outcome_unknown", "server_gone")
    assert end.data["error"]["exit_code"] == 3
    assert after.data["outcome"] == "succeeded"


async def test_rubbish_on_stdout_does_not_disturb_the_answer(rig: WorkerRig) -> None:
    """Lines that are no JSON-RPC are skipped."""
    end = await rig.call("shared", "rubbish", {"text": "fine"})

    assert end.data["outcome"] == "succeeded"


async def test_a_job_that_outruns_its_timeout_is_stopped_and_says_so(rig: WorkerRig) -> None:
    """Start-to-close: the server confirms the stop here, so its container lives on."""
    before = await rig.call("shared", "whoami")
    end = await rig.call("shared", "sleep", {"ms": 30_000}, timeout_ms=200)
    after = await rig.call("shared", "whoami")

    assert (end.data["outcome"], end.data["error"]["type"]) == ("timed_out", "job_timeout")
    assert before.data["result"]["structuredContent"]["boot"] == after.data["result"]["structuredContent"]["boot"]


async def test_a_tool_that_falls_silent_is_stopped_and_says_so(rig: WorkerRig) -> None:
    """Heartbeat: progress and output both count, however long the whole takes."""
    silent = await rig.call("shared", "sleep", {"ms": 30_000}, heartbeat_ms=300)
    reporting = await rig.call("shared", "progress", {"steps": 8, "delay_ms": 100}, heartbeat_ms=700)
    command = "for n in 1 2 3 4 5; do echo $n; sleep 0.2; done; sleep 30"
    fallen = await rig.call("exec", "run", {"command": command}, heartbeat_ms=900)

    assert (silent.data["outcome"], silent.data["error"]["type"]) == ("timed_out", "heartbeat_timeout")
    assert silent.data["error"]["heartbeat_ms"] == 300
    assert reporting.data["outcome"] == "succeeded"
    assert fallen.data["error"]["type"] == "heartbeat_timeout"
    assert fallen.data["timings"]["tool_ms"] > 1_000


async def test_a_call_that_ignores_its_cancel_costs_the_container_not_the_proof(rig: WorkerRig) -> None:
    """A server that does not confirm is replaced: the job ends when the old container is gone."""
    before = await rig.call("shared", "whoami")
    end = await rig.call("shared", "hang", timeout_ms=200)
    after = await rig.call("shared", "whoami")

    assert end.data["error"]["type"] == "job_timeout"
    assert before.data["result"]["structuredContent"]["boot"] != after.data["result"]["structuredContent"]["boot"]


async def test_a_running_job_is_cancelled_with_proof(rig: WorkerRig) -> None:
    """`cancelled` is stored once the server has confirmed."""
    job = await rig.enqueue("shared", "sleep", {"ms": 30_000}, session=subjects.new_session_id())
    await rig.until(job, "started")
    await rig.bus.request_cancel(job.session, job.id, 1)
    events = await rig.events(job)

    assert events[-1].data["outcome"] == "cancelled"


async def test_a_job_that_waited_past_its_queue_deadline_does_not_start(rig: WorkerRig) -> None:
    """Schedule-to-start: no `started` is stored."""
    job = await rig.enqueue("shared", "echo", {"text": "late"}, session=subjects.new_session_id(), queue_ms=-1)
    events = await rig.events(job)

    assert [event.type for event in events] == ["queued", "result"]
    assert (events[-1].data["outcome"], events[-1].data["error"]["type"]) == ("timed_out", "queue_timeout")


async def test_session_scope_keeps_state_for_one_session_and_from_the_others(rig: WorkerRig) -> None:
    """A lease is one session's alone."""
    one, other = subjects.new_session_id(), subjects.new_session_id()
    counts = [
        (await rig.call("kept", "count", session=session)).data["result"]["content"][0]["text"]
        for session in (one, one, other, one)
    ]

    assert counts == ["1", "2", "1", "3"]


async def test_call_scope_never_uses_a_container_twice(rig: WorkerRig) -> None:
    """Every call finds a process that has counted nothing."""
    session = subjects.new_session_id()
    jobs = [await rig.enqueue("once", "count", session=session) for _ in range(4)]
    events = await rig.events_of(jobs)

    assert [events[job.id][-1].data["result"]["content"][0]["text"] for job in jobs] == ["1"] * 4


async def test_jobs_of_a_session_on_a_leased_server_run_in_the_order_they_were_accepted(rig: WorkerRig) -> None:
    """FIFO per session and server, one at a time."""
    session = subjects.new_session_id()
    jobs = [await rig.enqueue("kept", "count", session=session) for _ in range(12)]
    events = await rig.events_of(jobs)

    assert [events[job.id][-1].data["result"]["content"][0]["text"] for job in jobs] == [str(n + 1) for n in range(12)]


async def test_a_command_streams_its_output_and_ends_with_its_exit_code(rig: WorkerRig) -> None:
    """`output` events per stream; a non-zero code is the tool's failure, told in the result."""
    job = await rig.enqueue("exec", "run", {"command": "echo out; echo err >&2; exit 3"}, session="s1")
    events = await rig.events(job)

    told = {event.data["stream"]: event.data["text"] for event in events if event.type == "output"}
    assert told == {"stdout": "out\n", "stderr": "err\n"}
    assert events[-1].data["outcome"] == "failed"
    assert events[-1].data["result"]["structuredContent"]["exitCode"] == 3


async def test_a_command_keeps_its_files_for_the_next_one_of_the_session(rig: WorkerRig) -> None:
    """Commands of a session share a container."""
    await rig.call("exec", "run", {"command": "echo kept >/tmp/note"}, session="s2")
    end = await rig.call("exec", "python", {"code": "print(open('/tmp/note').read())"}, session="s2")

    assert end.data["result"]["structuredContent"]["stdout"].strip() == "kept"


async def test_a_cancelled_command_is_dead_and_its_container_lives(rig: WorkerRig) -> None:
    """TERM to the whole process group, proven before `cancelled` is stored."""
    session = subjects.new_session_id()
    job = await rig.enqueue("exec", "run", {"command": "echo up; sleep 600 & sleep 601; wait"}, session=session)
    await rig.until(job, "output")
    await rig.bus.request_cancel(session, job.id, 1)
    events = await rig.events(job)
    search = "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c 'sleep [6]0[01]'"
    left = await rig.call("exec", "run", {"command": search}, session=session)

    assert events[-1].data["outcome"] == "cancelled"
    assert left.data["result"]["structuredContent"]["stdout"] == "0\n"
