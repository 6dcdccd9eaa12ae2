"""The system as its users have it: processes, a client on a WebSocket, real containers."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from client import Event, Session, connect
from tests.cluster import DEADLINE_S, STOP_TIMEOUT_S, Cluster, Service, run_cluster
from tests.nats_server import NatsServer

pytestmark = [pytest.mark.docker, pytest.mark.timeout(120)]

CATALOG = """
servers:
  time: {image: mcp-orchestrator/time:local}
  git: {image: mcp-orchestrator/git:local, scope: session, pool: {min: 1, max: 4}}
  fixture: {image: mcp-orchestrator/fixture:local}
  kept: {image: mcp-orchestrator/fixture:local, scope: session, pool: {min: 1, max: 4}}
"""


@pytest.fixture
async def cluster(nats_server: NatsServer, docker_host: str, tmp_path: Path) -> AsyncIterator[Cluster]:
    async with run_cluster(nats_server.url, docker_host, tmp_path, CATALOG) as running:
        yield running


async def test_a_client_moves_to_another_gateway_and_its_leased_container_is_reached_from_either_worker(
    cluster: Cluster,
) -> None:
    """Two gateways, two workers: a branch made in the session's repository is there after the move, and every event
    of a call that was running meanwhile arrives once, in order."""
    first, second = await cluster.start_gateway(), await cluster.start_gateway()
    await cluster.start_worker()
    await cluster.start_worker()
    async with connect([first.url, second.url]) as session:
        made = await session.run("git", "git_create_branch", {"repo_path": "/tmp/repo", "branch_name": "moved"})
        assert made.succeeded, made

        seen: list[Event] = []
        async with aclosing(session.call("fixture", "progress", {"steps": 8, "delay_ms": 150})) as events:
            async for event in events:
                seen.append(event)
                if event.type == "progress" and event.data["progress"] == 2:
                    os.kill(first.child.pid, signal.SIGKILL)
        branches = [
            await session.run("git", "git_branch", {"repo_path": "/tmp/repo", "branch_type": "local"}) for _ in range(6)
        ]

    assert [event.type for event in seen] == ["queued", "started", *["progress"] * 8, "result"]
    assert [event.data["progress"] for event in seen if event.type == "progress"] == list(range(1, 9))
    assert all("moved" in result.text for result in branches), branches


async def test_sigterm_lets_a_running_call_end_and_the_worker_exits_cleanly(cluster: Cluster) -> None:
    """The worker drains within its budget: the answer arrives, exit code 0, no container left."""
    gateway = await cluster.start_gateway()
    worker = await cluster.start_worker()
    async with connect(gateway.url) as session:
        async with aclosing(session.call("fixture", "sleep", {"ms": 1500})) as events:
            async for event in events:
                if event.type == "started":
                    os.kill(worker.child.pid, signal.SIGTERM)
        code = await ended(worker)

    assert event.data["outcome"] == "succeeded"
    assert code == 0
    assert await cluster.containers() == []


async def test_a_killed_worker_loses_no_job_and_repeats_only_what_may_be_repeated(cluster: Cluster) -> None:
    """SIGKILL mid-call: the read-only call runs again on the other worker, the other one ends `outcome_unknown`; the
    dead worker's containers are reaped."""
    gateway = await cluster.start_gateway()
    worker = await cluster.start_worker()
    async with connect(gateway.url) as session:
        async with asyncio.TaskGroup() as tasks:
            repeatable = tasks.create_task(session.run("fixture", "sleep", {"ms": 2000, "label": "again"}))
            once = tasks.create_task(session.run("fixture", "hang"))
            await started(session, 2)
            orphans = await cluster.containers()
            os.kill(worker.child.pid, signal.SIGKILL)
            other = await cluster.start_worker()

        assert (repeatable.result().outcome, repeatable.result().attempt) == ("succeeded", 2)
        assert once.result().outcome == "outcome_unknown"
        error = once.result().error
        assert error is not None
        assert error["retryable"] is False
    await cluster.gone(orphans)
    await other.child.stop(STOP_TIMEOUT_S)


async def test_a_worker_killed_while_holding_a_lease_is_succeeded_and_the_client_is_told(cluster: Cluster) -> None:
    """The next call of the session runs elsewhere, in a fresh container, and says `state_lost`."""
    gateway = await cluster.start_gateway()
    worker = await cluster.start_worker()
    async with connect(gateway.url) as session:
        assert (await session.run("kept", "count")).text == "1"
        assert (await session.run("kept", "count")).text == "2"
        orphans = await cluster.containers()
        os.kill(worker.child.pid, signal.SIGKILL)
        await ended(worker)
        await cluster.start_worker()
        lost = None
        async with aclosing(session.call("kept", "count")) as events:
            async for event in events:
                if event.type == "started":
                    lost = event.data["state_lost"]
    await cluster.gone(orphans)

    assert lost is True
    assert event.data["result"]["content"][0]["text"] == "1"


async def test_closing_a_session_cancels_its_jobs_and_frees_its_containers(cluster: Cluster) -> None:
    """Nothing of a closed session runs on."""
    gateway = await cluster.start_gateway()
    worker = await cluster.start_worker()
    async with connect(gateway.url) as session:
        running = session.call("kept", "sleep", {"ms": 60_000})
        async with aclosing(running) as events:
            async for event in events:
                if event.type == "started":
                    assert await session.close() == [event.job]
                    break
        job = event.job
    last = None
    async with asyncio.timeout(DEADLINE_S):
        while last is None or not last.event.terminal:
            last = await cluster.bus.last_event(session.id, job)
        while (await cluster.bus.get("leases", f"{session.id}.kept")).value is not None:
            pass

    assert last.event.data["outcome"] == "cancelled"
    await worker.child.stop(STOP_TIMEOUT_S)


async def ended(service: Service) -> int:
    async with asyncio.timeout(STOP_TIMEOUT_S):
        return await service.child.wait()


async def started(session: Session, count: int) -> None:
    """Wait for so many `started` events."""
    seen = 0
    async with asyncio.timeout(DEADLINE_S), aclosing(session.events()) as events:
        async for event in events:
            seen += event.type == "started"
            if seen == count:
                return
