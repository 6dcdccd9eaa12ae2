"""The state of the whole system, as `status/get` tells it to an operator."""

from __future__ import annotations

import asyncio
import socket
from time import monotonic
from typing import Any, Final

from common import subjects
from common.bus import Bus
from common.errors import StoreUnavailable
from gateway.catalog_view import CatalogView
from gateway.connections import Connections
from gateway.store import Store

WORKERS_ANSWER_WITHIN_S: Final = 0.3
"""How long workers have to answer: their number is not known, so this is also how long the question takes."""


class Status:
    def __init__(self, store: Store, catalog: CatalogView, connections: Connections) -> None:
        self._store = store
        self._catalog = catalog
        self._connections = connections
        self._host = socket.gethostname()
        self._started = monotonic()

    async def get(self) -> dict[str, Any]:
        """Answers without NATS too, for then the gateway's own state is what an operator wants to see."""
        fault = self._store.fault
        gateway = {
            "host": self._host,
            "uptime_s": round(monotonic() - self._started, 1),
            "connected": fault is None,
            "reason": fault or "",
            "draining": self._connections.draining,
            "connections": self._connections.count,
            "sessions": self._connections.sessions,
            "durability": self._store.durability.as_dict(),
        }
        workers: list[dict[str, Any]] = []
        queues: list[dict[str, Any]] = []
        if fault is None:
            workers, queues = await self._ask(self._store.bus)
        return {"gateway": gateway, "workers": workers, "queues": queues}

    async def _ask(self, bus: Bus) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """What the workers and the store say, asked at the same time."""
        lost = False
        try:
            async with asyncio.TaskGroup() as tasks:
                workers = tasks.create_task(_workers(bus))
                queues = [tasks.create_task(_queue(bus, name)) for name in (*self._catalog.names(), subjects.CHAT)]
        except* StoreUnavailable:
            lost = True
        if lost:
            raise StoreUnavailable("NATS went away while it was asked")
        return workers.result(), [queue.result() for queue in queues]


async def _workers(bus: Bus) -> list[dict[str, Any]]:
    """What each worker's NATS micro service says of itself."""
    answers = await bus.gather(subjects.micro_stats("worker"), WORKERS_ANSWER_WITHIN_S)
    workers = []
    for stats in answers:
        endpoints = stats.get("endpoints") or [{}]
        host = (stats.get("metadata") or {}).get("host", "")
        known = {"id": stats.get("id"), "host": host, "version": stats.get("version", "")}
        workers.append({**known, **(endpoints[0].get("data") or {})})
    return sorted(workers, key=lambda worker: str(worker["id"]))


async def _queue(bus: Bus, server: str) -> dict[str, Any]:
    waiting, running = await bus.queue_depth(server)
    # Read only where there is one: it comes with the job's message.
    oldest_s = await bus.oldest_job_age_s(server) if waiting or running else None
    return {
        "server": server,
        "waiting": waiting,
        "running": running,
        "oldest_s": None if oldest_s is None else round(oldest_s, 1),
    }
