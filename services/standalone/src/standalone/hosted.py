"""A service in this process: the way back to a monolith, with ENABLE_WORKER_MODE=false."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from standalone.errors import ServiceEnded

Serve = Callable[[asyncio.Event], Awaitable[None]]
"""Runs a service until the event is set; returns when it has drained."""


class Hosted:
    """Made by `run_here`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._stop = asyncio.Event()
        self._ended = asyncio.Event()
        self._failure: Exception | None = None

    async def watch(self) -> None:
        """Returns when the service was stopped.

        Raises:
            Exception: what the service failed with.
            ServiceEnded: if it returned by itself.
        """
        await self._ended.wait()
        if self._failure is not None:
            raise self._failure
        if not self._stop.is_set():
            raise ServiceEnded(self.name, 0, "")

    async def run(self, serve: Serve) -> None:
        try:
            await serve(self._stop)
        except Exception as exc:  # noqa: BLE001 - `watch` raises it where it does not cancel the other services
            self._failure = exc
        finally:
            self._ended.set()

    async def stop(self, timeout_s: float) -> None:
        """Returns when the service has drained, or after `timeout_s`."""
        self._stop.set()
        try:
            async with asyncio.timeout(timeout_s):
                await self._ended.wait()
        except TimeoutError:
            return  # the task group that owns it cuts it off


@asynccontextmanager
async def run_here(
    name: str, serve: Serve, tasks: asyncio.TaskGroup, *, stop_timeout_s: float
) -> AsyncIterator[Hosted]:
    """Run a service of this process while the context is open."""
    hosted = Hosted(name)
    task = tasks.create_task(hosted.run(serve))
    try:
        yield hosted
    finally:
        await hosted.stop(stop_timeout_s)
        task.cancel()
