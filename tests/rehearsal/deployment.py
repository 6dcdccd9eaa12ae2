"""Replicas of one service, and how they are exchanged: as a Deployment with maxUnavailable 0 and maxSurge 1."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.cluster import STOP_TIMEOUT_S, Service
from tests.rehearsal.release import Release

REPLICAS = 2


@dataclass(frozen=True)
class Exit:
    """How a replica went after SIGTERM."""

    name: str
    code: int
    took_s: float
    log_tail: str

    def __str__(self) -> str:
        return f"{self.name} ended with {self.code} after {self.took_s:.1f} s"


class Deployment:
    """`up()`, then `roll()` as often as wanted, then `down()`."""

    def __init__(self, start: Callable[[Release], Awaitable[Service]], say: Callable[[str], None]) -> None:
        self.exits: list[Exit] = []
        self.rolled = 0
        """Replicas that were exchanged."""
        self._start = start
        self._say = say
        self._replicas: list[tuple[Service, str]] = []

    async def up(self, release: Release) -> None:
        """
        Raises:
            NotReady: if a replica does not come up.
        """
        for _ in range(REPLICAS):
            self._replicas.append((await self._start(release), release.name))

    async def roll(self, release: Release) -> None:
        """Each new replica is ready before one of before is told to go, and that one is gone before the next comes.

        Raises:
            NotReady: if a replica does not come up; those of before go on then.
        """
        for _ in range(len(self._replicas)):
            self._replicas.append((await self._start(release), release.name))
            await self._stop_oldest()
            self.rolled += 1

    async def down(self) -> None:
        while self._replicas:
            await self._stop_oldest()

    async def _stop_oldest(self) -> None:
        service, release = self._replicas[0]
        begun = time.monotonic()
        by_itself = not service.child.running
        await service.child.stop(STOP_TIMEOUT_S)
        code = await service.child.wait()
        name = f"{service.child.name} ({release})" + (", which was not told to," if by_itself else "")
        left = Exit(name, code, time.monotonic() - begun, service.child.log_tail())
        self.exits.append(left)
        del self._replicas[0]
        self._say(str(left))
