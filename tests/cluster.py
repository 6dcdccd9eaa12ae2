"""A whole system of real processes: nats-server, gateways, workers, on one Docker Engine."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from common import catalog, registry
from common.bus import Bus, connect
from common.settings import BusSettings
from common.streams import Limits
from standalone.probe import wait_until_ready
from standalone.process import Child, run_process
from tests.nats_server import credentials
from worker.docker_engine import DockerEngine, open_docker_engine
from worker.reaper import STORE_LABEL

READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
"""More than a service allows itself, which then says in its log what each of its tasks waits for."""
DEADLINE_S = 60.0


@dataclass(frozen=True)
class Service:
    child: Child
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class Cluster:
    """Made by `run_cluster()`."""

    def __init__(
        self, bus: Bus, engine: DockerEngine, resources: AsyncExitStack, folder: Path, env: dict[str, str]
    ) -> None:
        self.bus = bus
        self.engine = engine
        self._resources = resources
        self._folder = folder
        self._env = env
        self._count = 0

    async def start_gateway(self, **env: str) -> Service:
        """At any port, or at that in `env`."""
        return await self._start("gateway", "PORT", {"HOST": "127.0.0.1", **env})

    async def start_worker(self, **env: str) -> Service:
        """Returns when its pools are warm."""
        return await self._start("worker", "HEALTH_PORT", {"HEALTH_HOST": "127.0.0.1", **env})

    async def _start(self, module: str, port_setting: str, env: dict[str, str]) -> Service:
        self._count += 1
        name = f"{module}-{self._count}"
        with socket.create_server(("127.0.0.1", int(env.get(port_setting, 0)))) as free:
            port: int = free.getsockname()[1]
        given = {**env, port_setting: str(port)}
        child = await self._resources.enter_async_context(
            run_process(
                name,
                [sys.executable, "-m", module],
                log=self._folder / f"{name}.log",
                env={**os.environ, **self._env, **credentials(module), **given},
                stop_timeout_s=STOP_TIMEOUT_S,
            )
        )
        await wait_until_ready(name, "127.0.0.1", port, READY_TIMEOUT_S, child)
        return Service(child, port)

    async def containers(self) -> list[str]:
        return [found.id for found in await self.engine.containers({STORE_LABEL: self.bus.epoch})]

    async def until_settled(self) -> None:
        """Returns when no job's message is in the queue any more: workers have done all that they do for them."""
        async with asyncio.timeout(DEADLINE_S):
            while await self.bus.servers_in_queue():
                await asyncio.sleep(0.05)

    async def gone(self, containers: list[str]) -> None:
        """Returns when none of them exists any more."""
        async with asyncio.timeout(DEADLINE_S):
            while set(containers) & set(await self.containers()):
                await asyncio.sleep(0.1)


@asynccontextmanager
async def run_cluster(
    nats_url: str,
    docker_host: str,
    folder: Path,
    servers: str | None,
    *,
    replicas: int = 1,
    lease_ttl_s: float = 3,
    artifact_store_bytes: int = Limits.artifact_store_bytes,
) -> AsyncIterator[Cluster]:
    """The catalog is applied, or the stored one stays; services are started by the caller. On leaving no container may
    be left."""
    env = {
        "NATS_URL": nats_url,
        "NATS_REPLICAS": str(replicas),
        "ARTIFACT_STORE_BYTES": str(artifact_store_bytes),
        "DOCKER_HOST": docker_host,
        "ACK_WAIT_S": "3",
        "LEASE_TTL_S": str(lease_ttl_s),
        "REAP_PERIOD_S": "0.5",
        "LOG_FORMAT": "json",
    }
    settings = BusSettings(
        nats_url=nats_url,
        nats_replicas=replicas,
        artifact_store_bytes=artifact_store_bytes,
        ack_wait_s=3,
        lease_ttl_s=lease_ttl_s,
    )
    async with connect(settings, "test") as bus, open_docker_engine(docker_host) as engine:
        if servers is not None:
            await registry.apply(bus, catalog.parse(servers, "test"))
        async with AsyncExitStack() as resources:
            cluster = Cluster(bus, engine, resources, folder, env)
            yield cluster
        async with asyncio.timeout(DEADLINE_S):
            left = await cluster.containers()
        assert left == []
