"""Removes containers that nobody uses, so that a worker killed with SIGKILL leaves nothing behind.

A container says by its labels which worker made it and for which store. A worker of the same store is alive
if it answers on the bus. Of another store's worker nothing can be known, except that a live one never keeps a
container that has ended: such a one is removed when it is old. One of our own that no pool knows was made after its
pool had given up on the engine's answer: it is removed when it cannot be one whose answer is still awaited.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from time import monotonic

from common.bus import Bus
from common.errors import StoreUnavailable
from common.log import get
from worker.docker_engine import CALL_TIMEOUT_S
from worker.engine import ContainerEngine
from worker.errors import EngineUnavailable
from worker.liveness import answers

_log = get(__name__)

WORKER_LABEL = "mcp-orchestrator.worker"
STORE_LABEL = "mcp-orchestrator.store"
ENDED_GRACE_S = 300.0
UNKNOWN_GRACE_S = 2 * CALL_TIMEOUT_S
"""A container is unknown to its pool while the engine makes it."""
LOOK_AGAIN_S = 2.0
"""Between two looks while a worker is silent."""


class Reaper:
    """`run()` looks at start and then on a period.

    A worker is gone when it was silent for `silence_s`: by then its jobs are delivered again and its leases are free,
    so that nothing runs in its containers that is not somebody else's already. It is asked once more before each
    removal, for it may be back by then.
    """

    def __init__(
        self,
        bus: Bus,
        engine: ContainerEngine,
        worker: str,
        period_s: float,
        known: Callable[[], Collection[str]],
        unknown_grace_s: float = UNKNOWN_GRACE_S,
    ) -> None:
        """`known` tells the containers of this worker's pools."""
        self._bus = bus
        self._engine = engine
        self._worker = worker
        self._known = known
        self._unknown_grace_s = unknown_grace_s
        self._unknown_since: dict[str, float] = {}
        self._period_s = period_s
        self._silence_s = max(bus.ack_wait_s, bus.limits.lease_ttl_s)
        self._silent_since: dict[str, float] = {}

    async def run(self) -> None:
        while True:
            try:
                await self.look()
            except (StoreUnavailable, EngineUnavailable, TimeoutError) as exc:
                _log.warning("reaper waits", why=str(exc))
            await asyncio.sleep(min(self._period_s, LOOK_AGAIN_S) if self._silent_since else self._period_s)

    async def look(self) -> None:
        owned: dict[str, list[str]] = {}
        ours: list[str] = []
        for container in await self._engine.containers({WORKER_LABEL: ""}):
            owner = container.labels[WORKER_LABEL]
            if container.labels.get(STORE_LABEL) != self._bus.epoch:
                if not container.running and time.time() - container.created_s > ENDED_GRACE_S:
                    await self._remove(container.id, owner)
            elif owner == self._worker:
                ours.append(container.id)
            else:
                owned.setdefault(owner, []).append(container.id)
        self._silent_since = {owner: since for owner, since in self._silent_since.items() if owner in owned}
        for owner, containers in owned.items():
            await self._look_at(owner, containers)
        await self._look_at_ours(ours)

    async def _look_at_ours(self, ours: list[str]) -> None:
        known = set(self._known())
        now = monotonic()
        self._unknown_since = {each: self._unknown_since.get(each, now) for each in ours if each not in known}
        for container, since in self._unknown_since.items():
            if now - since >= self._unknown_grace_s:
                await self._remove(container, self._worker)

    async def _look_at(self, owner: str, containers: list[str]) -> None:
        if await answers(self._bus, owner):
            self._silent_since.pop(owner, None)
            return
        since = self._silent_since.setdefault(owner, monotonic())
        if monotonic() - since < self._silence_s:
            return
        for container in containers:
            if await answers(self._bus, owner):
                self._silent_since.pop(owner, None)
                return
            await self._remove(container, owner)

    async def _remove(self, container: str, owner: str) -> None:
        await self._engine.remove(container)
        _log.info("container reaped", container=container[:12], owner=owner)


async def sweep(engine: ContainerEngine, worker: str) -> None:
    """Remove whatever this worker still owns: the last act before it leaves."""
    for container in await engine.containers({WORKER_LABEL: worker}):
        await engine.remove(container.id)
