"""One rehearsal from its first process to its verdict."""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from common.bus import Bus
from tests.cluster import Cluster, Service, run_cluster
from tests.nats_server import NatsServer, run_nats_server
from tests.ports import free_port
from tests.rehearsal.deployment import REPLICAS, Deployment
from tests.rehearsal.lanes import CATALOG
from tests.rehearsal.load import Load
from tests.rehearsal.release import Release
from tests.rehearsal.verdict import Evidence, Row, Verdict, judge

CATCH_UP_TIMEOUT_S = 30.0
POLL_S = 0.1
WORKER_CONCURRENCY = "16"


@dataclass(frozen=True)
class Length:
    """How many clients, and how long the load goes on beside the exchanges themselves."""

    sessions: int
    before_s: float
    """All is old; the measure for what follows."""
    between_s: float
    """All is new; before the way back."""
    after_s: float


class Rehearsal:
    """`execute()` once."""

    def __init__(self, old: Release, new: Release, length: Length, *, folder: Path, docker_host: str) -> None:
        self._old = old
        self._new = new
        self._length = length
        self._folder = folder
        self._docker_host = docker_host
        self._faults: list[str] = []
        self._begun = 0.0
        # One more than there are replicas: where the next one comes up. A client knows them all, as it would the
        # addresses behind a Service, and finds one of them closed.
        self._ports = [free_port() for _ in range(REPLICAS + 1)]
        self._gateways: list[Service] = []

    async def execute(self) -> Verdict:
        """Returns when nothing of the rehearsal is left.

        Raises:
            NotReady, TimeoutError: if a part does not come up.
        """
        nats_folder = self._folder / "nats"
        nats_folder.mkdir()
        self._say(f"old is {self._old.what}, new is {self._new.what}")
        async with (
            run_nats_server(nats_folder) as nats,
            run_cluster(nats.url, self._docker_host, self._folder, CATALOG) as cluster,
        ):
            return await self._rehearse(cluster, nats)

    async def _rehearse(self, cluster: Cluster, nats: NatsServer) -> Verdict:
        async def start_gateway(release: Release) -> Service:
            used = {gateway.port for gateway in self._gateways if gateway.child.running}
            port = next(port for port in self._ports if port not in used)
            self._gateways.append(await cluster.start_gateway(PORT=str(port), **release.env))
            return self._gateways[-1]

        async def start_worker(release: Release) -> Service:
            return await cluster.start_worker(WORKER_CONCURRENCY=WORKER_CONCURRENCY, **release.env)

        deployments = [Deployment(start_gateway, self._say), Deployment(start_worker, self._say)]

        async def roll(release: Release) -> None:
            """Both at the same time, as `kubectl apply` does."""
            self._say(f"rolling to {release.name}")
            async with asyncio.TaskGroup() as rolling:
                for deployment in deployments:
                    rolling.create_task(deployment.roll(release))

        async with asyncio.TaskGroup() as coming:
            for deployment in deployments:
                coming.create_task(deployment.up(self._old))
        load = Load(self._length.sessions, [f"http://127.0.0.1:{port}" for port in self._ports])
        async with asyncio.TaskGroup() as tasks:
            await load.begin(tasks)
            self._begun = time.monotonic()
            self._say(f"{len(load.clients)} sessions, two old gateways, two old workers")
            await asyncio.sleep(self._length.before_s)
            roll_begun = time.monotonic()
            await roll(self._new)
            await asyncio.sleep(self._length.between_s)
            await roll(self._old)
            roll_ended = time.monotonic()
            await asyncio.sleep(self._length.after_s)
            await load.stop()
            self._say(f"{len(load.calls)} calls were made; counting")
            await cluster.until_settled()
            stored = await self._stored_and_told(cluster.bus, load)
            await load.read_conversations()
            load.leave()
        async with asyncio.TaskGroup() as going:
            for deployment in deployments:
                going.create_task(deployment.down())
        for container in await cluster.containers():
            self._faults.append(f"container left: {container}")
            await cluster.engine.remove(container)
        self._faults += [f"refused by NATS: {line}" for line in nats.violations()]
        return judge(
            Evidence(
                calls=load.calls,
                seen=[client.seen for client in load.clients],
                stored=stored,
                exits=[left for deployment in deployments for left in deployment.exits],
                rolled=sum(deployment.rolled for deployment in deployments),
                roll_begun=roll_begun,
                roll_ended=roll_ended,
                faults=self._faults,
            )
        )

    async def _stored_and_told(self, bus: Bus, load: Load) -> dict[str, list[Row]]:
        """Every event of every session. Returns when each client was told the last one, or after the time."""
        stored = {}
        deadline = time.monotonic() + CATCH_UP_TIMEOUT_S
        for client in load.clients:
            seen = client.seen
            rows = stored[seen.session] = await _rows(bus, seen.session)
            while rows and seen.seq < rows[-1].seq and time.monotonic() < deadline:
                await asyncio.sleep(POLL_S)
        return stored

    def _say(self, what: str) -> None:
        at = f"{time.monotonic() - self._begun:6.1f} s" if self._begun else "   start"
        print(f"rehearsal: {at}  {what}", file=sys.stderr, flush=True)


async def _rows(bus: Bus, session: str) -> list[Row]:
    return [Row(seq, event.job, event.terminal) async for seq, event in bus.replay_session(session, 0)]
