"""An event loop of its own for whoever takes part, so that a test decides who goes on, and how far."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, Final, TypeVar

DEADLINE_S: Final = 10.0
LOOK_EVERY_S: Final = 0.0005

T = TypeVar("T")


class Party:
    """Stands still, as a process that is stopped does, but while the test runs one of its methods.

    What comes over the network meanwhile waits in the socket.
    """

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._loop = self._runner.get_loop()
        self._leave = asyncio.Event()
        self._standing: set[asyncio.Task[Any]] = set()
        self.resources = AsyncExitStack()
        """Closed with the party, in its loop."""
        self.tasks: asyncio.TaskGroup
        self.steps = 0
        """How often it has run."""
        self._life = self._loop.create_task(self._live())
        self.turn(2)

    async def _live(self) -> None:
        async with asyncio.TaskGroup() as self.tasks:
            await self._leave.wait()

    def do(self, step: Coroutine[Any, Any, T]) -> T:
        """Run until `step` has returned. A fault of a task in the background ends the test."""
        self.steps += 1
        done = self._runner.run(_within_deadline(step))
        if self._life.done():
            self._life.result()
        return done

    def turn(self, count: int) -> None:
        """Run so many turns of the loop, and wait for nothing."""

        async def turns() -> None:
            for _ in range(count):
                await asyncio.sleep(0)

        self.do(turns())

    def keep_what_runs(self) -> None:
        """Tasks that run by now outlive `cut_off()`."""
        self._standing = asyncio.all_tasks(self._loop)

    def cut_off(self) -> None:
        """End all other tasks where they stand, as SIGKILL would: none of them gets to do another step."""
        cut = asyncio.all_tasks(self._loop) - self._standing
        for task in cut:
            task.cancel()
        if cut:
            self.do(_until_ended(cut))

    def close(self) -> None:
        """Returns when its tasks have ended and its resources are closed."""
        try:
            self._leave.set()
            self.do(_until_ended({self._life}))
            self.do(self.resources.aclose())
        finally:
            self._runner.close()


async def until(holds: Callable[[], bool]) -> None:
    """Returns when `holds()` is true. For what the store or a library does and tells nobody."""
    async with asyncio.timeout(DEADLINE_S):
        while not holds():
            await asyncio.sleep(LOOK_EVERY_S)


async def _within_deadline(step: Coroutine[Any, Any, T]) -> T:
    async with asyncio.timeout(DEADLINE_S):
        return await step


async def _until_ended(tasks: set[asyncio.Task[Any]]) -> None:
    await asyncio.wait(tasks)
