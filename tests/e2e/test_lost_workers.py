"""Workers that die or freeze in the middle of a call: what becomes of it, and that it is told truly."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from client import Event, JobResult, Session, connect
from tests.cluster import DEADLINE_S, Cluster, Service, run_cluster
from tests.nats_server import NatsServer

pytestmark = [pytest.mark.docker, pytest.mark.timeout(120)]

CATALOG = """
servers:
  fixture: {image: mcp-orchestrator/fixture:local}
"""


@pytest.fixture
async def cluster(nats_server: NatsServer, docker_host: str, tmp_path: Path) -> AsyncIterator[Cluster]:
    async with run_cluster(nats_server.url, docker_host, tmp_path, CATALOG) as running:
        yield running


async def ended(session: Session, job: str) -> tuple[list[Event], JobResult]:
    """Every event of a job up to its end."""
    async with asyncio.timeout(DEADLINE_S), aclosing(session.follow(job)) as following:
        events = [event async for event in following]
    return events, JobResult.from_event(events[-1])


async def begin(session: Session, tool: str, **arguments: object) -> Event:
    """Call a tool; its `started` event."""
    async with asyncio.timeout(DEADLINE_S), aclosing(session.call("fixture", tool, dict(arguments))) as events:
        async for event in events:
            if event.type == "started":
                return event
    raise AssertionError("the job has not started")


async def killed(worker: Service) -> None:
    os.kill(worker.child.pid, signal.SIGKILL)
    await worker.child.wait()


@pytest.mark.parametrize("tool", ["sleep", "hang"], ids=["read-only", "not repeatable"])
async def test_a_cancel_that_its_worker_did_not_live_to_obey_is_obeyed_by_the_next_with_proof(
    cluster: Cluster, tool: str
) -> None:
    """The worker is frozen while it is asked, then killed: its container is removed before `cancelled` is stored."""
    gateway = await cluster.start_gateway()
    worker = await cluster.start_worker()
    async with connect(gateway.url) as session:
        start = await begin(session, tool, **({"ms": 60_000} if tool == "sleep" else {}))
        os.kill(worker.child.pid, signal.SIGSTOP)
        assert await session.cancel(start.job) == "started"
        await killed(worker)
        await cluster.start_worker(REAP_PERIOD_S="60")
        events, result = await ended(session, start.job)

    assert result.outcome == "cancelled"
    assert [event.attempt for event in events if event.type == "started"] == [1]
    assert await cluster.engine.inspect(start.data["container"]) is None


async def test_a_worker_that_was_frozen_leaves_the_job_to_the_one_that_has_it_now(cluster: Cluster) -> None:
    """Its late answer is refused by the store, and it neither runs the job again nor ends it."""
    gateway = await cluster.start_gateway()
    frozen = await cluster.start_worker()
    async with connect(gateway.url) as session:
        job = (await begin(session, "sleep", ms=2_000, label="slept")).job
        os.kill(frozen.child.pid, signal.SIGSTOP)
        other = await cluster.start_worker()
        async with asyncio.timeout(DEADLINE_S):
            while (await session.job(job)).attempt != 2:
                await asyncio.sleep(0.02)
        os.kill(frozen.child.pid, signal.SIGCONT)
        events, result = await ended(session, job)
        again = await session.run("fixture", "echo", {"text": "both work"})

    assert (result.outcome, result.attempt, result.text) == ("succeeded", 2, "slept")
    assert [(event.type, event.attempt) for event in events] == [
        ("queued", 0),
        ("started", 1),
        ("started", 2),
        ("result", 2),
    ]
    assert len({event.data["worker"] for event in events if event.type == "started"}) == 2
    assert again.succeeded
    assert frozen.child.running
    assert other.child.running


async def test_a_lost_workers_job_says_who_had_started_it_and_when_whatever_it_told_after(cluster: Cluster) -> None:
    """`outcome_unknown` with attempt, worker and moment, although its last event was something else."""
    gateway = await cluster.start_gateway()
    worker = await cluster.start_worker()
    async with connect(gateway.url) as session:
        async with aclosing(session.call("fixture", "report_then_hang", {"steps": 3})) as calling:
            seen: list[Event] = []
            async for event in calling:
                seen.append(event)
                if event.type == "progress" and event.data["progress"] == 3:
                    break
        orphans = await cluster.containers()
        await killed(worker)
        await cluster.start_worker()
        _, result = await ended(session, seen[0].job)
    await cluster.gone(orphans)

    [start] = [event for event in seen if event.type == "started"]
    assert result.outcome == "outcome_unknown"
    assert result.error is not None
    assert result.error["worker"] == start.data["worker"]
    assert result.error["started_ms"] == start.time_ms
    assert (result.error["attempt"], result.error["retryable"]) == (1, False)


async def test_a_server_that_is_killed_during_a_repeatable_call_costs_an_attempt_not_the_call(cluster: Cluster) -> None:
    """The worker lives: it says so with `retrying`, and the next attempt follows at once in another container."""
    gateway = await cluster.start_gateway()
    await cluster.start_worker()
    async with connect(gateway.url) as session:
        start = await begin(session, "sleep", ms=1_500, label="slept")
        await cluster.engine.remove(start.data["container"])
        events, result = await ended(session, start.job)

    assert (result.outcome, result.attempt) == ("succeeded", 2)
    assert [event.type for event in events] == ["queued", "started", "retrying", "started", "result"]
    assert events[2].data["error"]["type"] == "server_gone"
    assert events[3].data["container"] != start.data["container"]
