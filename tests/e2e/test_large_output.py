"""Output far larger than memory may hold: whole at every client, whatever becomes of the job, its worker, the store.

FLOOD_MIB is the size of the largest flood: 256 MiB keep the suite quick, `FLOOD_MIB=1024` is the full measure.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
from benchmarks.memory import watching
from benchmarks.output import sha256_of

from client import Event, Session, connect
from tests.cluster import DEADLINE_S, Cluster, Service, run_cluster
from tests.nats_server import NatsServer
from tests.output_reader import OutputReader, next_event, raw_client

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

CATALOG = """
servers:
  shell: {kind: exec, image: mcp-orchestrator/time:local, scope: session, pool: {min: 1, max: 4}}
  again:
    kind: exec
    image: mcp-orchestrator/time:local
    scope: call
    tools: {run: {read_only: true}}
  brief:
    kind: exec
    image: mcp-orchestrator/time:local
    scope: call
    tools: {run: {timeout_ms: 2500}}
"""
MIB = 1024 * 1024
FLOOD_MIB = int(os.environ.get("FLOOD_MIB", "256"))
MOST_GROWTH_MIB = 32
BEHIND_BYTES = 48 * MIB
"""How far the slow client keeps behind the fast one: more than the kernel and the gateway may hold for it."""
LINE = "abcdefghijklmno"
LINES = f"yes {LINE}"
NOISE = "cat /dev/urandom"
"""What no compression makes smaller."""


def sha256_of_lines(size: int) -> str:
    return sha256_of(f"{LINE}\n".encode() * (MIB // (len(LINE) + 1)), size)


@pytest.fixture
async def cluster(nats_server: NatsServer, docker_host: str, tmp_path: Path) -> AsyncIterator[Cluster]:
    async with run_cluster(nats_server.url, docker_host, tmp_path, CATALOG) as running:
        yield running


@pytest.fixture
async def small_store(nats_server: NatsServer, docker_host: str, tmp_path: Path) -> AsyncIterator[Cluster]:
    """All output together may take 16 MiB."""
    async with run_cluster(nats_server.url, docker_host, tmp_path, CATALOG, artifact_store_bytes=16 * MIB) as running:
        yield running


async def started(cluster: Cluster, **worker_env: str) -> tuple[Service, Service]:
    """A gateway and a worker that are ready."""
    async with asyncio.TaskGroup() as tasks:
        gateway = tasks.create_task(cluster.start_gateway())
        worker = tasks.create_task(cluster.start_worker(**worker_env))
    return gateway.result(), worker.result()


def run(session: Session, command: str, server: str = "shell") -> AsyncGenerator[Event, None]:
    return session.call(server, "run", {"command": command})


async def read(events: AsyncGenerator[Event, None], reader: OutputReader | None = None) -> OutputReader:
    """A job's events up to its end."""
    reader = reader or OutputReader()
    async with aclosing(events):
        async for event in events:
            await reader.take(event)
    return reader


async def test_a_flood_is_whole_at_a_fast_and_a_slow_client_beside_a_stalled_one_in_bounded_memory(
    cluster: Cluster,
) -> None:
    """Three clients of one session: the slow one stays far behind the fast one while the command runs, so that what it
    has not read can only wait in the store; the third never reads."""
    gateway, worker = await started(cluster)
    size = FLOOD_MIB * MIB
    async with (
        connect(gateway.url, protocol="mcp.msgpack") as session,
        raw_client(gateway.url, session.id) as slow_socket,
        raw_client(gateway.url, session.id),  # the stalled one: joins, and reads nothing after that
    ):
        fast, slow = OutputReader(), OutputReader()

        async def read_slowly() -> None:
            while slow.end is None:
                await fast.reached(slow.stdout + BEHIND_BYTES)
                await slow.take(await next_event(slow_socket))

        async with watching([gateway.child.pid, worker.child.pid]) as memories, asyncio.TaskGroup() as tasks:
            tasks.create_task(read_slowly())
            await read(run(session, f"{LINES} | head -c {size}"), fast)
            behind = fast.stdout - slow.stdout
        growth = [memory.growth for memory in memories]

    fast.assert_whole()
    slow.assert_whole()
    assert fast.told()["size"] == size
    assert fast.told()["sha256"] == sha256_of_lines(size)
    assert behind >= BEHIND_BYTES - MIB, "the slow client was not slow"
    assert max(growth) <= MOST_GROWTH_MIB, f"gateway and worker grew by {growth} MiB"


async def test_output_that_a_cancel_or_the_jobs_timeout_cuts_off_is_told_as_far_as_it_came(cluster: Cluster) -> None:
    gateway, _ = await started(cluster)
    cancelled, timed_out = OutputReader(), OutputReader()
    async with connect(gateway.url, protocol="mcp.msgpack") as session:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(read(run(session, LINES), cancelled))
            await cancelled.reached(4 * MIB)
            await session.cancel(cancelled.starts[0].job)
        await read(run(session, LINES, "brief"), timed_out)

    for reader, outcome, least in ((cancelled, "cancelled", 4 * MIB), (timed_out, "timed_out", 1)):
        assert reader.end is not None
        assert reader.end.data["outcome"] == outcome
        assert reader.stdout >= least
        reader.assert_whole()
        assert reader.told()["sha256"] == sha256_of_lines(reader.stdout)


async def test_a_worker_killed_in_a_flood_costs_what_had_come_and_the_next_begins_at_byte_0(cluster: Cluster) -> None:
    """`started` says `discard`; a client that does so has what the second attempt wrote."""
    gateway, worker = await started(cluster)
    size = 96 * MIB
    reader = OutputReader()
    async with connect(gateway.url, protocol="mcp.msgpack") as session, asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(read(run(session, f"{LINES} | head -c {size}", "again"), reader))
        await reader.reached(4 * MIB)
        orphans = await cluster.containers()
        await killed(worker)
        await cluster.start_worker()
        await reading
    await cluster.gone(orphans)  # the second worker removes them in its own time, so it must not be stopped before

    assert reader.end is not None
    assert reader.end.data["outcome"] == "succeeded"
    assert [(start.attempt, start.data.get("discard", False)) for start in reader.starts] == [(1, False), (2, True)]
    assert reader.void[0] >= 4 * MIB
    reader.assert_whole()
    assert (reader.told()["size"], reader.told()["sha256"]) == (size, sha256_of_lines(size))


async def test_bytes_of_any_kind_come_as_they_were_written(cluster: Cluster) -> None:
    """Every byte value and random ones, against the digest that the tool itself tells; one line of 64 MiB; two streams
    that take turns, each in its order."""
    gateway, _ = await started(cluster)
    binary = (
        "import os, sys, hashlib; data = bytes(range(256)) + os.urandom(1 << 20);"
        " sys.stderr.write(hashlib.sha256(data).hexdigest()); sys.stdout.buffer.write(data)"
    )
    turns = 3_000
    async with connect(gateway.url, protocol="mcp.msgpack") as session:
        random = await read(session.call("shell", "python", {"code": binary}))
        line = await read(run(session, f"head -c {64 * MIB} /dev/zero | tr '\\0' x"))
        mixed = await read(run(session, f"for i in $(seq {turns}); do echo out $i; echo err $i >&2; done"))

    for reader in (random, line, mixed):
        assert reader.end is not None
        assert reader.end.data["outcome"] == "succeeded"
        reader.assert_whole()
    assert random.told()["size"] == MIB + 256
    assert random.told()["sha256"] == random.streams["stderr"].first.decode()
    assert line.told()["size"] == 64 * MIB
    assert line.told()["sha256"] == hashlib.sha256(b"x" * 64 * MIB).hexdigest()
    for stream, word in (("stdout", "out"), ("stderr", "err")):
        assert mixed.streams[stream].first.decode().splitlines() == [f"{word} {n}" for n in range(1, turns + 1)]


async def test_a_full_store_ends_the_job_that_floods_and_no_other(small_store: Cluster) -> None:
    """The other has spilled before, and ends after it. What the failed job had stored is removed: there is room for
    the next."""
    gateway, _ = await started(small_store)
    other = OutputReader()
    wait = "until [ -e /tmp/go ]; do sleep 0.05; done"
    async with (
        connect(gateway.url, protocol="mcp.msgpack") as flooding,
        connect(gateway.url, protocol="mcp.msgpack") as session,
        asyncio.TaskGroup() as tasks,
    ):
        reading = tasks.create_task(read(run(session, f"{LINES} | head -c {4 * MIB}; {wait}; echo last"), other))
        await other.reached(3 * MIB)
        flood = await read(run(flooding, NOISE))
        await done_in(small_store, other.starts[0].data["container"], ["touch", "/tmp/go"])
        await reading
        after = await read(run(flooding, f"head -c {8 * MIB} /dev/urandom"))

    assert flood.end is not None
    assert flood.end.data["outcome"] == "failed"
    assert flood.end.data["error"]["type"] == "output_store_full"
    assert "artifact" not in flood.told()
    for reader, size in ((other, 4 * MIB + 5), (after, 8 * MIB)):
        assert reader.end is not None
        assert reader.end.data["outcome"] == "succeeded"
        assert reader.told()["size"] == size
        reader.assert_whole()


async def test_a_job_that_writes_more_than_it_may_ends_and_keeps_what_it_wrote(cluster: Cluster) -> None:
    most = 6 * MIB + 7
    gateway, _ = await started(cluster, MAX_OUTPUT_BYTES=str(most), ARTIFACT_THRESHOLD_BYTES=str(2 * MIB))
    async with connect(gateway.url, protocol="mcp.msgpack") as session:
        reader = await read(run(session, LINES))

    assert reader.end is not None
    assert reader.end.data["outcome"] == "failed"
    assert reader.end.data["error"]["type"] == "output_too_large"
    reader.assert_whole()
    assert (reader.told()["size"], reader.told()["sha256"]) == (most, sha256_of_lines(most))
    assert "artifact" in reader.told()


async def killed(worker: Service) -> None:
    os.kill(worker.child.pid, signal.SIGKILL)
    async with asyncio.timeout(DEADLINE_S):
        await worker.child.wait()


async def done_in(cluster: Cluster, container: str, command: list[str]) -> None:
    """Run a command beside the job of a container."""
    process = await cluster.engine.execute(container, command)
    async with asyncio.timeout(DEADLINE_S):
        while await process.output.read() is not None:
            continue
    await process.output.close()
