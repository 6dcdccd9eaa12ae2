"""A process of a test that is killed, frozen and started anew, always at the same address."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from standalone.process import Child, run_process

END_TIMEOUT_S = 20.0


class Restartable:
    """One program with its arguments. Each start has a log of its own: `<name>.<start>.log`.

    `close()` ends it for good, whatever state it is in; nothing outlives the process that made it.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        folder: Path,
        stop_timeout_s: float,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.starts = 0
        self.pids: list[int] = []
        """Of every start. Each was the first of a session, in which its children are."""
        self.frozen = False
        self._argv = argv
        self._folder = folder
        self._stop_timeout_s = stop_timeout_s
        self._env = env
        self._resources = AsyncExitStack()
        self._child: Child | None = None
        self._ended_by_us = True

    @property
    def child(self) -> Child:
        """The process of the newest start."""
        assert self._child is not None, f"{self.name} was never started"
        return self._child

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.running

    @property
    def ended_by_itself(self) -> bool:
        """Was it started, and is gone although nobody here ended it?"""
        return not self.running and not self._ended_by_us

    async def start(self) -> None:
        """Returns when the process exists; whether it serves is for the caller to find out."""
        assert not self.running, f"{self.name} runs already"
        await self._resources.aclose()
        self.starts += 1
        self.frozen = False
        self._child = await self._resources.enter_async_context(
            run_process(
                self.name,
                self._argv,
                log=self._folder / f"{self.name}.{self.starts}.log",
                env=self._env,
                stop_timeout_s=self._stop_timeout_s,
            )
        )
        self.pids.append(self._child.pid)
        self._ended_by_us = False

    async def kill(self) -> None:
        """SIGKILL. Returns when the process is gone."""
        self._ended_by_us = True
        os.kill(self.child.pid, signal.SIGKILL)
        async with asyncio.timeout(END_TIMEOUT_S):
            await self.child.wait()

    def freeze(self) -> None:
        """SIGSTOP: it keeps its connections and its locks, and does nothing."""
        os.kill(self.child.pid, signal.SIGSTOP)
        self.frozen = True

    def thaw(self) -> None:
        if self.frozen and self.running:
            os.kill(self.child.pid, signal.SIGCONT)
        self.frozen = False

    async def terminate(self) -> int:
        """SIGTERM. Returns the exit code; minus the signal if it had to be killed."""
        self.thaw()
        self._ended_by_us = True
        await self.child.stop(self._stop_timeout_s)
        return await self.child.wait()

    async def close(self) -> None:
        """Returns when no process of it is left."""
        self.thaw()
        self._ended_by_us = True
        await self._resources.aclose()
