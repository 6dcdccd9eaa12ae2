"""The cluster that other tests take apart: it is one, and a node that comes back catches up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import httpx
import nats
import nats.errors
import nats.js.errors
import pytest

from tests.nats_cluster import NatsNode, run_nats_cluster

pytestmark = pytest.mark.timeout(120)

DEADLINE_S = 60.0
T = TypeVar("T")


async def answered(ask: Callable[[], Awaitable[T]]) -> T:
    """What JetStream answers, once it has a leader: it says nothing while it elects one."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                return await ask()
            except (nats.errors.Error, nats.js.errors.Error):
                await asyncio.sleep(0.1)


async def test_a_killed_node_loses_nothing_and_catches_up(tmp_path: Path) -> None:
    """Two of three go on; the third is healthy only when it has what it missed."""
    async with run_nats_cluster(tmp_path) as cluster:
        first, *others = cluster.nodes
        client = await nats.connect([node.url for node in others], max_reconnect_attempts=-1)
        stream = client.jetstream(timeout=1)
        await answered(lambda: stream.add_stream(name="kept", subjects=["kept"], num_replicas=3))
        await answered(lambda: stream.publish("kept", b"before"))
        await first.kill()
        assert [fault.split(":")[0] for fault in await cluster.faults()] == [first.name]
        await answered(lambda: stream.publish("kept", b"during"))
        await first.start()
        await cluster.wait_until_healthy()
        info = await answered(lambda: stream.stream_info("kept"))
        await client.close()

    assert info.state.messages >= 2
    assert info.cluster is not None
    assert len(info.cluster.replicas or []) == 2


async def test_a_node_without_a_quorum_names_no_leader(tmp_path: Path) -> None:
    """By which the alert NatsNoQuorum knows it: the exporter makes `meta_leader` and `cluster` of this answer."""
    async with run_nats_cluster(tmp_path) as cluster, httpx.AsyncClient(trust_env=False) as http:

        async def meta(node: NatsNode) -> tuple[str, bool]:
            found = (await http.get(f"http://127.0.0.1:{node.monitor_port}/jsz")).json()["meta_cluster"]
            return found["name"], bool(found.get("leader"))

        assert [await meta(node) for node in cluster.nodes] == [("test", True)] * 3
        *lost, left = cluster.nodes
        for node in lost:
            await node.kill()
        async with asyncio.timeout(DEADLINE_S):
            while await meta(left) != ("test", False):
                await asyncio.sleep(0.1)


async def test_a_frozen_node_is_not_healthy_until_it_is_thawed(tmp_path: Path) -> None:
    """It keeps its connections, so nothing but its silence tells."""
    async with run_nats_cluster(tmp_path) as cluster:
        cluster.nodes[1].freeze()
        async with asyncio.timeout(DEADLINE_S):
            while not (faults := await cluster.faults()):
                continue  # a thread that runs when the signal comes may still answer
        assert [fault.split(":")[0] for fault in faults] == [cluster.nodes[1].name]
        cluster.nodes[1].thaw()
        await cluster.wait_until_healthy()
