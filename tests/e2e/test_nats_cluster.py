"""The contract on a JetStream cluster of three nodes, while they are killed and restarted one after another."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from client import Event, JobResult, Refused, Session, connect
from common import subjects
from common.streams import SESSIONS, stream_configs
from tests.cluster import DEADLINE_S, Cluster, run_cluster
from tests.nats_cluster import NatsCluster, run_nats_cluster

pytestmark = [pytest.mark.docker, pytest.mark.timeout(240)]

CATALOG = """
servers:
  shared: {image: mcp-orchestrator/fixture:local}
  kept: {image: mcp-orchestrator/fixture:local, scope: session, pool: {min: 1, max: 4}}
"""
CALLERS = 4


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[NatsCluster]:
    async with run_nats_cluster(tmp_path) as running:
        yield running


@pytest.fixture
async def cluster(nats: NatsCluster, docker_host: str, tmp_path: Path) -> AsyncIterator[Cluster]:
    # A lease has to outlive an election, which takes 4 to 9 s: nobody can renew it meanwhile.
    async with run_cluster(nats.url, docker_host, tmp_path, CATALOG, replicas=3, lease_ttl_s=20) as running:
        await nats.wait_until_healthy()
        yield running


async def test_every_stream_has_its_replicas(cluster: Cluster) -> None:
    """`NATS_REPLICAS` reaches streams and buckets alike."""
    js = cluster.bus.client.jetstream()
    infos = [await js.stream_info(str(config.name)) for config in stream_configs(cluster.bus.limits)]

    assert [info.config.num_replicas for info in infos] == [3] * len(infos)
    assert [len(info.cluster.replicas or []) for info in infos if info.cluster] == [2] * len(infos)


async def test_nothing_is_lost_while_nodes_are_killed_and_restarted_one_after_another(
    cluster: Cluster, nats: NatsCluster
) -> None:
    """Callers go on over two gateways and two workers: every accepted call ends once, a lease keeps its state, and
    every client has seen what is stored, in order."""
    gateways = [await cluster.start_gateway() for _ in range(2)]
    for _ in range(2):
        await cluster.start_worker()
    over = asyncio.Event()

    refused: set[str] = set()

    async def call(number: int) -> tuple[Session, dict[str, list[Event]], list[str]]:
        """Count in a leased container, and look at progress of a shared one, until all nodes were down once."""
        seen: dict[str, list[Event]] = {}
        counts: list[str] = []
        urls = [gateway.url for gateway in gateways]
        async with connect(urls[number % 2 :] + urls[: number % 2], keep=True, reconnect_s=60) as session:
            while not over.is_set():
                counts.append(await counted(session, number, len(counts)))
                key = f"p{number}-{len(counts)}"
                seen[key] = [event async for event in kept_trying(session, key, refused)]
            return session, seen, counts

    async with asyncio.TaskGroup() as tasks:
        callers = [tasks.create_task(call(number)) for number in range(CALLERS)]
        for node in nats.nodes:
            await node.kill()
            await asyncio.sleep(1.5)  # the time without it
            await node.start()
            await nats.wait_until_healthy()
        over.set()

    for caller in callers:
        session, seen, counts = caller.result()
        stored = [event async for event in cluster.bus.replay_session(session.id, 0)]
        per_job = Counter(each.event.job for each in stored if each.event.terminal)
        queued = {each.event.job for each in stored if each.event.type == "queued"}
        assert set(per_job) == queued
        assert set(per_job.values()) == {1}
        assert counts == [str(number + 1) for number in range(len(counts))]
        for key, events in seen.items():
            mine = [(event.seq, event.type) for event in events]
            whole = [(each.seq, each.event.type) for each in stored if each.event.job == events[0].job]
            # What was stored of a call before it was refused reached nobody who waited for it.
            assert mine == (whole[-len(mine) :] if key in refused else whole)
    assert await cluster.bus.servers_in_queue() == set()


async def counted(session: Session, number: int, done: int) -> str:
    """One call of `count`, accepted once however often it is sent."""
    async with aclosing(kept_trying(session, f"c{number}-{done}", set(), "kept", "count")) as events:
        async for event in events:
            if event.terminal:
                result = JobResult.from_event(event)
                assert result.succeeded, result
                return result.text
    raise AssertionError("the events of a call end with its terminal event")


async def kept_trying(
    session: Session, key: str, refused: set[str], server: str = "shared", tool: str = "progress"
) -> AsyncGenerator[Event]:
    arguments = {"steps": 3, "delay_ms": 30} if tool == "progress" else {}
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                async with aclosing(session.call(server, tool, arguments, idempotency_key=key)) as events:
                    async for event in events:
                        yield event
                return
            except Refused as exc:
                if exc.type != "store_unavailable":
                    raise
                # The store had no leader for long; nobody knows whether the job was accepted, but for the key.
                refused.add(key)
            await asyncio.sleep(0.2)


async def test_a_session_opened_at_one_gateway_is_known_at_the_other_at_once(
    cluster: Cluster, nats: NatsCluster
) -> None:
    """A replica that lags does not make it unknown: what is decided by is read from the leader."""
    first, second = await cluster.start_gateway(), await cluster.start_gateway()
    await cluster.start_worker()
    for _ in range(10):
        async with connect(first.url) as session, connect(second.url, session=session.id) as joined:
            assert (await joined.run("shared", "echo", {"text": "x"})).succeeded
            newest = await cluster.bus.newest_event_seq(session.id)
            leader = await cluster.bus.client.jetstream().get_last_msg(SESSIONS, subjects.events_of_session(session.id))
            assert newest == leader.seq
