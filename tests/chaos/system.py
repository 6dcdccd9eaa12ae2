"""The system under test: three NATS nodes, gateways, workers, a Docker daemon; each a process that may be killed.

Every way between two of them that crosses a machine in production goes through a proxy: client → gateway,
gateway → NATS, worker → NATS.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Literal

from common import catalog, registry
from common.bus import Bus, connect
from common.settings import BusSettings
from standalone.probe import wait_until_ready
from tests.chaos.docker_daemon import DockerDaemon, run_docker_daemon
from tests.chaos.ledger import RUNTIME, Ledger
from tests.chaos.proxy import Proxy, run_proxy
from tests.leftovers import processes_of_sessions
from tests.nats_cluster import NatsCluster, run_nats_cluster
from tests.nats_server import credentials
from tests.ports import free_port
from tests.restartable import Restartable

Durability = Literal["process", "power"]

IMAGE = "mcp-orchestrator/chaos:local"
ACK_WAIT_S = 2.0
LEASE_TTL_S = 3.0
READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
WATCH_PERIOD_S = 0.2

SERVERS = ("shared", "session", "call")
"""Named by their scope."""
CATALOG = f"""
servers:
  shared:
    image: {IMAGE}
    runtime: {RUNTIME}
    pool: {{min: 1, max: 2}}
    timeouts: {{job_ms: 20000, queue_s: 120}}
  session:
    image: {IMAGE}
    runtime: {RUNTIME}
    scope: session
    pool: {{min: 1, max: 12}}
    timeouts: {{job_ms: 20000, queue_s: 120, idle_s: 10}}
  call:
    image: {IMAGE}
    runtime: {RUNTIME}
    scope: call
    pool: {{min: 1, max: 4}}
    timeouts: {{job_ms: 20000, queue_s: 120}}
"""


class Service(Restartable):
    """A gateway or a worker, with the proxies of its own between it and NATS."""

    def __init__(self, module: str, number: int, folder: Path, env: dict[str, str], links: list[Proxy]) -> None:
        self.port = free_port()
        self.links = links
        address = {"HOST": "127.0.0.1", "PORT": str(self.port)}
        if module == "worker":
            address = {f"HEALTH_{name}": value for name, value in address.items()}
        super().__init__(
            f"{module}-{number}",
            [sys.executable, "-m", module],
            folder=folder,
            stop_timeout_s=STOP_TIMEOUT_S,
            env={
                **os.environ,
                **env,
                **address,
                **credentials(module),
                "NATS_URL": ",".join(f"nats://127.0.0.1:{p.port}" for p in links),
            },
        )

    async def wait_until_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """
        Raises:
            NotReady: saying why not.
        """
        await wait_until_ready(self.name, "127.0.0.1", self.port, timeout_s, self.child)

    @property
    def worker_id(self) -> str:
        """What a worker calls itself since its newest start; empty as long as it has said nothing."""
        with self.child.log.open() as log:
            for line in log:
                if '"worker running"' in line:
                    return str(json.loads(line)["worker"])
        return ""


class Gateway(Service):
    """Clients reach it at `url`, through `client_link`."""

    def __init__(self, number: int, folder: Path, env: dict[str, str], links: list[Proxy]) -> None:
        super().__init__("gateway", number, folder, env, links)
        self.client_link: Proxy

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.client_link.port}/v1/ws"


class System:
    """Made by `run_system()`."""

    def __init__(
        self,
        nats: NatsCluster,
        docker: DockerDaemon,
        ledger: Ledger,
        gateways: list[Gateway],
        workers: list[Service],
        bus: Bus,
    ) -> None:
        self.nats = nats
        self.docker = docker
        self.ledger = ledger
        self.gateways = gateways
        self.workers = workers
        self.bus = bus
        self.crashes: list[str] = []
        """Processes that ended although nobody had ended them."""

    @property
    def services(self) -> list[Service]:
        return [*self.gateways, *self.workers]

    @property
    def proxies(self) -> list[Proxy]:
        links = [link for service in self.services for link in service.links]
        return [*links, *(gateway.client_link for gateway in self.gateways)]

    async def watch(self) -> None:
        """Start anew what ends by itself, as an orchestrator of processes would, and note it. Runs until cancelled."""
        while True:
            await asyncio.sleep(WATCH_PERIOD_S)
            for process in (*self.services, *self.nats.nodes, self.docker):
                if process.ended_by_itself:
                    code = await process.child.wait()
                    self.crashes.append(
                        f"{process.name} ended by itself with {code}, {process.child.log}:\n{process.child.log_tail()}"
                    )
                    await process.start()

    async def heal(self, timeout_s: float) -> None:
        """Undo every fault. Returns when everything is up and ready.

        Raises:
            TimeoutError, NotReady: if something does not come back.
        """
        for proxy in self.proxies:
            proxy.heal()
        for process in (*self.nats.nodes, self.docker, *self.services):
            process.thaw()
            if not process.running:
                await process.start()
        await self.nats.wait_until_healthy(timeout_s)
        for service in self.services:
            await service.wait_until_ready(timeout_s)

    async def terminate(self) -> list[str]:
        """SIGTERM to every service at the same time. Returns those that did not end in order."""
        codes = await asyncio.gather(*(service.terminate() for service in self.services))
        return [
            f"{service.name} ended with {code} after SIGTERM:\n{service.child.log_tail()}"
            for service, code in zip(self.services, codes, strict=True)
            if code != 0
        ]

    async def leases(self) -> list[str]:
        """Keys of the leases that are held."""
        held = []
        async for entry in self.bus.watch("leases"):
            if entry is None:
                break
            if entry.value is not None:
                held.append(entry.key)
        return held

    def processes(self) -> list[str]:
        """What is there of all services that were ever started, their children with them."""
        sessions = {pid for service in self.services for pid in service.pids}
        return [f"{pid} {line}" for pid, line in processes_of_sessions(sessions).items()]


@asynccontextmanager
async def run_system(
    folder: Path, docker_host: str, *, durability: Durability = "process", gateways: int = 2, workers: int = 2
) -> AsyncIterator[System]:
    """Everything up and ready; nothing of it is left when the context ends.

    The images come from the engine at `docker_host`.

    Raises:
        NotReady, TimeoutError: if a part does not come up.
    """
    ledger = Ledger(folder)
    async with AsyncExitStack() as stack:
        docker = await stack.enter_async_context(run_docker_daemon(folder, {RUNTIME: ledger.runtime}))
        await docker.load(IMAGE, docker_host)
        nats = await stack.enter_async_context(run_nats_cluster(folder, sync_always=durability == "power"))
        settings = BusSettings(nats_url=nats.url, nats_replicas=3, ack_wait_s=ACK_WAIT_S, lease_ttl_s=LEASE_TTL_S)
        bus = await stack.enter_async_context(connect(settings, "chaos"))
        await registry.apply(bus, catalog.parse(CATALOG, "the fault run's catalog"))
        env = {
            "NATS_REPLICAS": "3",
            "DURABILITY": durability,
            "ACK_WAIT_S": str(ACK_WAIT_S),
            "LEASE_TTL_S": str(LEASE_TTL_S),
            "REAP_PERIOD_S": "1",
            "WORKER_CONCURRENCY": "16",
            "DRAIN_TIMEOUT_S": "10",
            "LOG_FORMAT": "json",
            "DOCKER_HOST": docker.host,
        }

        async def links() -> list[Proxy]:
            return [await stack.enter_async_context(run_proxy(node.port)) for node in nats.nodes]

        system = System(
            nats,
            docker,
            ledger,
            [Gateway(number, folder, env, await links()) for number in range(1, gateways + 1)],
            [Service("worker", number, folder, env, await links()) for number in range(1, workers + 1)],
            bus,
        )
        for gateway in system.gateways:
            gateway.client_link = await stack.enter_async_context(run_proxy(gateway.port))
        for service in system.services:
            stack.push_async_callback(service.close)
            await service.start()
        for service in system.services:
            await service.wait_until_ready()
        yield system
