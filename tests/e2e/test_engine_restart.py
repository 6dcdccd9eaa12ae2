"""The Docker Engine goes away and comes back under a running worker, which does not restart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from client import Event, JobResult, Session, connect
from tests.chaos.docker_daemon import DockerDaemon, run_docker_daemon
from tests.cluster import DEADLINE_S, Service, run_cluster
from tests.nats_server import NatsServer

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]

FIXTURE = "mcp-orchestrator/fixture:local"
CATALOG = f"""
servers:
  shared: {{image: {FIXTURE}, pool: {{min: 1, max: 2}}}}
  kept: {{image: {FIXTURE}, scope: session, pool: {{min: 1, max: 3}}}}
"""


@asynccontextmanager
async def system(
    nats_server: NatsServer, docker_host: str, folder: Path
) -> AsyncIterator[tuple[DockerDaemon, Service, Session]]:
    """An engine of the test's own, one worker on it, a gateway and a client."""
    async with run_docker_daemon(folder, {}) as daemon:
        await daemon.load(FIXTURE, docker_host)
        async with run_cluster(nats_server.url, daemon.host, folder, CATALOG) as cluster:
            gateway = await cluster.start_gateway()
            worker = await cluster.start_worker()
            async with connect(gateway.url) as session:
                yield daemon, worker, session


async def begin(session: Session, server: str, tool: str, **arguments: object) -> str:
    """Call a tool; its job, once it has started."""
    async with asyncio.timeout(DEADLINE_S), aclosing(session.call(server, tool, dict(arguments))) as events:
        async for event in events:
            if event.type == "started":
                return event.job
    raise AssertionError("the job has not started")


async def ended(session: Session, job: str) -> tuple[list[Event], JobResult]:
    async with asyncio.timeout(DEADLINE_S), aclosing(session.follow(job)) as following:
        events = [event async for event in following]
    return events, JobResult.from_event(events[-1])


async def test_running_jobs_end_by_the_contract_and_the_pools_refill(
    nats_server: NatsServer, docker_host: str, tmp_path: Path
) -> None:
    """Killed for two seconds: the repeatable call runs again, the other ends `outcome_unknown`, a lease says that its
    state is lost, what is called meanwhile waits; the worker is the same process, and nothing is left over."""
    async with system(nats_server, docker_host, tmp_path) as (daemon, worker, session):
        assert (await session.run("kept", "count")).text == "1"
        repeatable = await begin(session, "shared", "sleep", ms=1_000, label="slept")
        once = await begin(session, "shared", "hang")
        await daemon.kill()
        async with asyncio.TaskGroup() as tasks:
            meanwhile = tasks.create_task(session.run("shared", "echo", {"text": "meanwhile"}))
            await asyncio.sleep(2)  # how long the engine is away
            await daemon.start()
        again, result = await ended(session, repeatable)
        _, unknown = await ended(session, once)
        lost = [event async for event in session.call("kept", "count")]

        assert (result.outcome, result.text) == ("succeeded", "slept")
        assert [event.type for event in again if event.type in ("started", "retrying")] == [
            "started",
            "retrying",
            "started",
        ]
        assert unknown.outcome == "outcome_unknown"
        assert meanwhile.result().text == "meanwhile"
        assert [event.data["state_lost"] for event in lost if event.type == "started"] == [True]
        assert JobResult.from_event(lost[-1]).text == "1"
        assert worker.child.running
        async with asyncio.timeout(DEADLINE_S):
            while any(pool["ready"] < 1 for each in (await session.status())["workers"] for pool in each["pools"]):
                await asyncio.sleep(0.1)
        assert [(await session.run("shared", "echo", {"text": str(n)})).text for n in range(5)] == list("01234")
