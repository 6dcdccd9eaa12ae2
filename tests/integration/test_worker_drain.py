"""A worker that goes: what ends with it, what goes on elsewhere, and what may not be repeated."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.nats_server import NatsServer
from tests.worker_rig import WorkerRig, worker_rig

pytestmark = pytest.mark.docker


@pytest.fixture
async def rig(nats_server: NatsServer, docker_host: str) -> AsyncIterator[WorkerRig]:
    async with worker_rig(nats_server.url, docker_host, ack_wait_s=3, lease_ttl_s=3) as made:
        yield made


async def test_drain_lets_a_running_job_end_and_hands_the_waiting_ones_to_another_worker(rig: WorkerRig) -> None:
    """SIGTERM loses nothing and runs nothing twice."""
    await rig.apply("servers: {shared: {image: mcp-orchestrator/fixture:local, concurrency: {per_worker: 1}}}")
    rig.start_worker()
    await rig.workers(1)
    jobs = [await rig.enqueue("shared", "sleep", {"ms": 400}, session="s1") for _ in range(3)]
    await rig.until(jobs[0], "started")
    rig.start_worker()
    await rig.stop_worker(0)
    events = await rig.events_of(jobs)

    assert [events[job.id][-1].data["outcome"] for job in jobs] == ["succeeded"] * 3
    assert [events[job.id][-1].attempt for job in jobs] == [1, 1, 1]


async def test_a_draining_worker_gives_up_each_lease_when_nothing_of_it_runs_not_when_it_leaves(rig: WorkerRig) -> None:
    """One session's long call holds up no other session: theirs go on with another worker, its own after the call."""
    await rig.apply("servers: {kept: {image: mcp-orchestrator/fixture:local, scope: session}}")
    rig.start_worker()
    await rig.workers(1)
    await rig.call("kept", "count", session="quiet")
    await rig.call("kept", "count", session="busy")
    running = await rig.enqueue("kept", "sleep", {"ms": 6_000}, session="busy")
    behind_it = await rig.enqueue("kept", "count", session="busy")
    await rig.until(running, "started")
    rig.start_worker()
    await rig.workers(2)
    rig.start_stopping(0)
    moved = await rig.events(await rig.enqueue("kept", "count", session="quiet"))
    busy = await rig.events_of([running, behind_it])

    starts = [next(event for event in events if event.type == "started") for events in (moved, busy[behind_it.id])]
    assert [start.data["state_lost"] for start in starts] == [True, True]
    assert len({start.data["worker"] for start in starts}) == 1
    assert moved[-1].data["outcome"] == "succeeded"
    assert moved[-1].time_ms < busy[running.id][-1].time_ms <= starts[1].time_ms
    assert (busy[running.id][-1].data["outcome"], busy[running.id][-1].attempt) == ("succeeded", 1)


async def test_a_repeatable_job_cut_off_by_the_drain_budget_runs_again_elsewhere(rig: WorkerRig) -> None:
    """Un-acknowledged, so the store delivers it again; the tool is read-only, so it may run again."""
    await rig.apply("servers: {shared: {image: mcp-orchestrator/fixture:local}}")
    rig.start_worker(drain_timeout_s=0.2)
    await rig.workers(1)
    job = await rig.enqueue("shared", "sleep", {"ms": 3000}, session="s1")
    await rig.until(job, "started")
    rig.start_worker()
    await rig.stop_worker(0)
    events = await rig.events(job)

    assert events[-1].data["outcome"] == "succeeded"
    assert events[-1].attempt == 2


async def test_a_job_that_may_not_be_repeated_ends_with_its_outcome_unknown(rig: WorkerRig) -> None:
    """`hang` has no hints: after its worker was cut off it is not run again."""
    await rig.apply("servers: {shared: {image: mcp-orchestrator/fixture:local}}")
    rig.start_worker(drain_timeout_s=0)
    await rig.workers(1)
    job = await rig.enqueue("shared", "hang", session="s1")
    await rig.until(job, "started")
    rig.start_worker()
    await rig.stop_worker(0)
    events = await rig.events(job)

    assert events[-1].data["outcome"] == "outcome_unknown"
    assert events[-1].data["error"]["retryable"] is False
    assert [event.type for event in events] == ["queued", "started", "result"]
