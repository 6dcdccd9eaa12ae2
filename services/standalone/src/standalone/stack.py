"""Everything on one machine: nats-server, the catalog, a gateway, workers; and their end in reverse order."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from pydantic import ValidationError

from common import catalog, registry
from common.bus import connect
from common.settings import BusSettings
from standalone.errors import PortTaken, StandaloneError
from standalone.hosted import Serve, run_here
from standalone.nats_server import NatsServer, run_nats_server
from standalone.probe import wait_until_ready
from standalone.process import Child, run_process
from standalone.settings import StandaloneSettings

LOOPBACK: Final = "127.0.0.1"
ANY: Final = ("0.0.0.0", "::", "")
SLACK_S: Final = 5.0
"""What a service may take to stop beyond its own drain budget."""


@dataclass(frozen=True)
class Stack:
    """What runs. Made by `run_stack`."""

    url: str
    """Of the gateway."""
    nats_url: str
    pids: list[int]
    """Of all child processes: nats-server, the gateway, the workers. Each leads a session of its own."""


@asynccontextmanager
async def run_stack(settings: StandaloneSettings) -> AsyncIterator[Stack]:
    """Start everything and wait until it is ready; stop everything on leaving.

    A service that ends by itself cancels the body.

    Raises:
        ExceptionGroup: of StandaloneError, CatalogFault, and whatever the body raises.
    """
    servers = catalog.read(settings.servers_file)
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    # Two groups: a failed watcher cancels the body, and thereby stops the services one after the other. In one
    # group it would cut them all off.
    async with (
        asyncio.TaskGroup() as tasks,
        asyncio.TaskGroup() as watchers,
        AsyncExitStack() as resources,
    ):
        nats = await resources.enter_async_context(
            run_nats_server(settings.state_dir / "nats", port=settings.nats_port, durability=settings.durability)
        )
        watchers.create_task(nats.child.watch())
        async with connect(BusSettings(**_store_settings(settings, nats)), "standalone") as bus:
            await registry.apply(bus, servers)
        launch = _Launch(settings, nats, tasks, watchers, resources)
        url = await (launch.as_processes() if settings.enable_worker_mode else launch.in_this_process())
        yield Stack(url, nats.url, [nats.child.pid, *launch.pids])


class _Launch:
    """The start of a gateway and of workers, as processes or in this one."""

    def __init__(
        self,
        settings: StandaloneSettings,
        nats: NatsServer,
        tasks: asyncio.TaskGroup,
        watchers: asyncio.TaskGroup,
        resources: AsyncExitStack,
    ) -> None:
        self.pids: list[int] = []
        self._settings = settings
        self._store = _store_settings(settings, nats)
        self._tasks = tasks
        self._watchers = watchers
        self._resources = resources
        self._stop_timeout_s = settings.drain_timeout_s + SLACK_S

    async def as_processes(self) -> str:
        """Returns the gateway's URL when all are ready."""
        host = self._settings.host
        with _listen(host, self._settings.port) as free:
            port: int = free.getsockname()[1]
        async with asyncio.TaskGroup() as starting:
            gateway = await self._process("gateway", "gateway", HOST=host, PORT=str(port))
            starting.create_task(self._ready("gateway", _dialled(host), port, gateway))
            for name in self._worker_names():
                health = _free_port()
                worker = await self._process(name, "worker", HEALTH_HOST=LOOPBACK, HEALTH_PORT=str(health))
                starting.create_task(self._ready(name, LOOPBACK, health, worker))
        return f"http://{_dialled(host)}:{port}"

    async def in_this_process(self) -> str:
        """As `as_processes`."""
        # Imported here, so that services in processes of their own do not cost this one their memory.
        from gateway.server import serve as serve_gateway
        from gateway.settings import GatewaySettings
        from worker.__main__ import serve as serve_worker
        from worker.settings import WorkerSettings

        host = self._settings.host
        listener = _listen(host, self._settings.port)
        port: int = listener.getsockname()[1]
        shared: dict[str, Any] = {**self._store, "drain_timeout_s": self._settings.drain_timeout_s}
        try:
            gateway = GatewaySettings(host=host, port=port, **shared)
            workers = {
                name: WorkerSettings(health_host=LOOPBACK, health_port=_free_port(), **shared)
                for name in self._worker_names()
            }
        except ValidationError as exc:
            raise StandaloneError(f"settings cannot be used: {exc}") from exc
        await self._hosted("gateway", partial(serve_gateway, gateway, listener=listener))
        async with asyncio.TaskGroup() as starting:
            starting.create_task(self._ready("gateway", _dialled(host), port))
            for name, worker in workers.items():
                await self._hosted(name, partial(serve_worker, worker))
                starting.create_task(self._ready(name, LOOPBACK, worker.health_port))
        return f"http://{_dialled(host)}:{port}"

    def _worker_names(self) -> list[str]:
        return [f"worker-{number}" for number in range(1, self._settings.workers + 1)]

    async def _process(self, name: str, module: str, **env: str) -> Child:
        shared = {
            **{name.upper(): str(value) for name, value in self._store.items()},
            "LOG_FORMAT": "json",
            "LOG_LEVEL": self._settings.log_level,
            "DRAIN_TIMEOUT_S": str(self._settings.drain_timeout_s),
        }
        child = await self._resources.enter_async_context(
            run_process(
                name,
                [sys.executable, "-m", module],
                log=self._settings.state_dir / f"{name}.log",
                env={**os.environ, **shared, **env},
                stop_timeout_s=self._stop_timeout_s,
            )
        )
        self._watchers.create_task(child.watch())
        self.pids.append(child.pid)
        return child

    async def _hosted(self, name: str, serve: Serve) -> None:
        hosted = await self._resources.enter_async_context(
            run_here(name, serve, self._tasks, stop_timeout_s=self._stop_timeout_s)
        )
        self._watchers.create_task(hosted.watch())

    async def _ready(self, name: str, host: str, port: int, child: Child | None = None) -> None:
        await wait_until_ready(name, host, port, self._settings.start_timeout_s, child)


def _store_settings(settings: StandaloneSettings, nats: NatsServer) -> dict[str, Any]:
    """What the services are told of the one server, whatever the environment says of others."""
    return {
        "nats_url": nats.url,
        "nats_monitor_url": nats.monitor_url,
        "nats_replicas": 1,
        "durability": settings.durability,
    }


def _listen(host: str, port: int) -> socket.socket:
    """
    Raises:
        PortTaken: if the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as exc:
        raise PortTaken(host, port, exc.strerror or str(exc)) from exc


def _free_port() -> int:
    with _listen(LOOPBACK, 0) as free:
        port: int = free.getsockname()[1]
        return port


def _dialled(host: str) -> str:
    """Where to reach what listens on `host`."""
    return LOOPBACK if host in ANY else host
