"""Proof that nothing of an attempt runs any more, when the worker that ran it is lost."""

from __future__ import annotations

from common.bus import Bus
from common.log import get
from common.schema import Event
from worker.engine import ContainerEngine
from worker.errors import EngineUnavailable
from worker.liveness import answers

_log = get(__name__)


class OwnerAlive(Exception):
    """The worker that ran the attempt answers again: it stops the call itself, and says so."""


class Proof:
    def __init__(self, bus: Bus, engine: ContainerEngine, worker: str) -> None:
        self._bus = bus
        self._engine = engine
        self._worker = worker

    async def is_dead(self, started: Event) -> bool:
        """Remove the attempt's container, which is nobody's any more. False if that cannot be told from here.

        It cannot if the container is on another engine, or is one of our own: that may serve other calls.

        Raises:
            OwnerAlive: if its worker answers.
            EngineUnavailable: if the engine does not answer; nothing is known then.
            StoreUnavailable: if the bus does not answer.
        """
        owner, container = str(started.data.get("worker", "")), str(started.data.get("container", ""))
        elsewhere = started.data.get("engine") != await self._engine.identity()
        if not container or elsewhere or owner == self._worker:
            return False
        if await answers(self._bus, owner):
            raise OwnerAlive(f"worker {owner} answers")
        try:
            await self._engine.remove(container)
        except TimeoutError as exc:
            raise EngineUnavailable(f"container {container} was not removed in time") from exc
        _log.info("container of a lost worker removed", container=container, owner=owner, job=started.job)
        return True
