"""Removes containers that no live worker owns, so that a worker killed with SIGKILL leaves nothing behind.

A container says by its labels which worker made it and for which store. A worker of the same store is alive
if it answers on the bus. Of another store's worker nothing can be known, except that a live one never keeps a
container that has ended: such a one is removed when it is old.
"""

from __future__ import annotations

import asyncio
import time

from common.bus import Bus
from common.errors import StoreUnavailable
from common.log import get
from common.subjects import micro_stats
from worker.engine import ContainerEngine
from worker.errors import EngineUnavailable

_log = get(__name__)

WORKER_LABEL = "mcp-orchestrator.worker"
STORE_LABEL = "mcp-orchestrator.store"
ANSWER_WAIT_S = 2.0
ENDED_GRACE_S = 300.0
CONFIRMATIONS = 2
"""Looks in a row at which a worker must be silent before it counts as gone: one may fall into a pause."""


class Reaper:
    """`run()` looks at start and then on a period."""

    def __init__(self, bus: Bus, engine: ContainerEngine, worker: str, period_s: float) -> None:
        self._bus = bus
        self._engine = engine
        self._worker = worker
        self._period_s = period_s
        self._silent: dict[str, int] = {}

    async def run(self) -> None:
        while True:
            try:
                await self.look()
            except (StoreUnavailable, EngineUnavailable, TimeoutError) as exc:
                _log.warning("reaper waits", why=str(exc))
            await asyncio.sleep(min(self._period_s, ANSWER_WAIT_S) if self._silent else self._period_s)

    async def look(self) -> None:
        found = await self._engine.containers({WORKER_LABEL: ""})
        suspects = [
            container
            for container in found
            if container.labels.get(STORE_LABEL) == self._bus.epoch and container.labels[WORKER_LABEL] != self._worker
        ]
        alive: set[str] = set()
        if suspects:
            answers = await self._bus.gather(micro_stats("worker"), ANSWER_WAIT_S)
            alive = {answer.get("metadata", {}).get("worker", "") for answer in answers}
        owners = {container.labels[WORKER_LABEL] for container in suspects} - alive
        self._silent = {owner: self._silent.get(owner, 0) + 1 for owner in owners}
        gone = {owner for owner, times in self._silent.items() if times >= CONFIRMATIONS}
        for container in suspects:
            if container.labels[WORKER_LABEL] in gone:
                await self._remove(container.id, container.labels[WORKER_LABEL])
        for owner in gone:
            del self._silent[owner]
        for container in found:
            foreign = container.labels.get(STORE_LABEL) != self._bus.epoch
            if foreign and not container.running and time.time() - container.created_s > ENDED_GRACE_S:
                await self._remove(container.id, container.labels[WORKER_LABEL])

    async def _remove(self, container: str, owner: str) -> None:
        await self._engine.remove(container)
        _log.info("container reaped", container=container[:12], owner=owner)


async def sweep(engine: ContainerEngine, worker: str) -> None:
    """Remove whatever this worker still owns: the last act before it leaves."""
    for container in await engine.containers({WORKER_LABEL: worker}):
        await engine.remove(container.id)
