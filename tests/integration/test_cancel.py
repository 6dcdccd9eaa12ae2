"""Cancel, from a client's request to its proof: every state of a job, in every scope, on real containers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from common import catalog
from common.schema import Event
from tests.gateway_rig import Socket, gateway_rig
from tests.nats_server import NatsServer
from tests.worker_rig import DEADLINE_S, WorkerRig, worker_rig

pytestmark = pytest.mark.docker

SCOPES = ["shared", "session", "call"]
IMAGE = "image: mcp-orchestrator/fixture:local"
SLOW = f'{IMAGE}, command: [fixture, slow-start, "1"], pool: {{min: 0, max: 2}}'
WARM = f"""
servers:
  shared: {{{IMAGE}, scope: shared, pool: {{min: 1, max: 1}}}}
  session: {{{IMAGE}, scope: session, pool: {{min: 1, max: 4}}}}
  call: {{{IMAGE}, scope: call, pool: {{min: 1, max: 4}}}}
"""
STUBBORN = f"servers: {{stubborn: {{{IMAGE}, command: [fixture, serve, --ignore-cancel], pool: {{min: 1, max: 1}}}}}}"
COLD = f"""
servers:
  shared: {{{SLOW}, concurrency: {{per_container: 1}}}}
  session: {{{SLOW}, scope: session}}
  call: {{{SLOW}, scope: call}}
"""


class Rig:
    """A worker, a gateway, and a client on a socket. Made by `rig_of()`."""

    def __init__(self, worker: WorkerRig, socket: Socket, session: str) -> None:
        self.worker = worker
        self.session = session
        self._socket = socket

    async def of_another_session(self) -> Rig:
        return Rig(self.worker, self._socket, await self._socket.open())

    async def call(self, server: str, tool: str, **arguments: Any) -> str:
        answer = await self._socket.call(
            "tools/call", session=self.session, server=server, name=tool, arguments=arguments
        )
        return str(answer["job"])

    async def cancel(self, job: str) -> str:
        return str((await self._socket.call("job/cancel", session=self.session, job=job))["state"])

    async def until(self, job: str, type_: str) -> None:
        async with asyncio.timeout(DEADLINE_S), self.worker.bus.subscribe_session(self.session, 0) as feed:
            async for stored in feed:
                if stored.event.job == job and stored.event.type == type_:
                    return

    async def events(self, job: str) -> list[Event]:
        """All that is stored of a job once it has ended, and left the queue."""
        await self.until(job, "result")
        async with asyncio.timeout(DEADLINE_S):
            while job in await self.worker.bus.unfinished_jobs(self.session):
                await asyncio.sleep(0.02)
        found = [stored.event async for stored in self.worker.bus.replay_session(self.session, 0)]
        return [event for event in found if event.job == job]

    async def outcome(self, job: str) -> str:
        [end] = [event for event in await self.events(job) if event.terminal]
        return str(end.data["outcome"])


@asynccontextmanager
async def rig_of(nats_server: NatsServer, docker_host: str, servers: str) -> AsyncIterator[Rig]:
    async with worker_rig(nats_server.url, docker_host) as worker, gateway_rig(nats_server.url) as gateways:
        await worker.apply(servers)
        worker.start_worker()
        names = catalog.parse(servers, "test")
        for server in names:
            await worker.listing(server)
        gateway = await gateways.start_gateway()
        async with gateway.socket() as socket:
            for server in names:
                await socket.until_status(server, "ready")
            yield Rig(worker, socket, await socket.open())


@pytest.fixture
async def rig(nats_server: NatsServer, docker_host: str) -> AsyncIterator[Rig]:
    async with rig_of(nats_server, docker_host, WARM) as made:
        yield made


@pytest.mark.parametrize("server", SCOPES)
async def test_a_queued_job_is_cancelled_at_once_and_never_runs(rig: Rig, server: str) -> None:
    """No worker runs. It leaves the queue; a worker that comes later finds nothing to do."""
    await rig.worker.stop_worker()
    job = await rig.call(server, "count")
    assert await rig.cancel(job) == "result"
    events = await rig.events(job)
    rig.worker.start_worker()
    await rig.worker.workers(1)

    assert [event.type for event in events] == ["queued", "result"]
    assert await rig.outcome(await rig.call(server, "count")) == "succeeded"
    assert [event.type for event in await rig.events(job)] == ["queued", "result"]


@pytest.mark.parametrize("server", SCOPES)
async def test_a_running_job_is_cancelled_with_the_servers_confirmation(rig: Rig, server: str) -> None:
    """The wish is told, then the end; twice is as once, and after the end it changes nothing."""
    job = await rig.call(server, "sleep", ms=60_000)
    await rig.until(job, "started")
    assert {await rig.cancel(job), await rig.cancel(job)} <= {"started", "result"}
    events = await rig.events(job)
    assert await rig.cancel(job) == "result"

    assert sorted(event.type for event in events) == ["cancelling", "queued", "result", "started"]
    assert events[-1].data["outcome"] == "cancelled"
    assert len(await rig.events(job)) == len(events)


@pytest.mark.parametrize("server", SCOPES)
async def test_a_finished_job_stays_as_it_ended(rig: Rig, server: str) -> None:
    """Cancelled after its answer it has still succeeded."""
    job = await rig.call(server, "echo", text="x")
    before = await rig.events(job)

    assert await rig.cancel(job) == "result"
    assert await rig.events(job) == before
    assert before[-1].data["outcome"] == "succeeded"


@pytest.mark.parametrize("server", SCOPES)
async def test_a_job_that_is_getting_its_container_is_cancelled_before_it_starts(
    nats_server: NatsServer, docker_host: str, server: str
) -> None:
    """Its container boots, for a second: the job's `started` is refused by the store, and nothing of it runs."""
    async with rig_of(nats_server, docker_host, COLD) as rig:
        holder = await rig.call(server, "sleep", ms=60_000)  # takes the one container that there is
        await rig.until(holder, "started")
        other = await rig.of_another_session()
        job = await other.call(server, "count")
        async with asyncio.timeout(DEADLINE_S):
            while await rig.worker.bus.queue_depth(server) != (0, 2):
                await asyncio.sleep(0.01)
        assert await other.cancel(job) == "result"

        assert [event.type for event in await other.events(job)] == ["queued", "result"]
        assert await other.outcome(job) == "cancelled"
        assert await other.outcome(await other.call(server, "count")) == "succeeded"
        await rig.cancel(holder)


async def test_a_server_that_ignores_a_cancel_is_ended_and_its_other_call_is_not_lost(
    nats_server: NatsServer, docker_host: str
) -> None:
    """A shared container is ended for one caller's cancel only when that is the only proof, after its other calls."""
    async with rig_of(nats_server, docker_host, STUBBORN) as rig:
        hanging = await rig.call("stubborn", "hang")
        await rig.until(hanging, "started")
        other = await rig.call("stubborn", "sleep", ms=3_000, label="done")
        await rig.until(other, "started")
        await rig.cancel(hanging)

        assert await rig.outcome(other) == "succeeded"
        assert await rig.outcome(hanging) == "cancelled"
        assert await rig.outcome(await rig.call("stubborn", "echo", text="again")) == "succeeded"


@pytest.mark.parametrize("server", SCOPES)
async def test_a_cancel_that_races_with_the_answer_gives_one_of_the_two_outcomes(rig: Rig, server: str) -> None:
    """Never both: one terminal event each, and what it says is what the client was told."""
    for number in range(12):
        job = await rig.call(server, "sleep", ms=number)
        await rig.until(job, "started")
        await rig.cancel(job)
        events = await rig.events(job)

        assert [event.type for event in events if event.terminal] == ["result"]
        assert await rig.outcome(job) in ("succeeded", "cancelled")
