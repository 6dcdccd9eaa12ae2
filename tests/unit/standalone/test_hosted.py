"""Services in this process."""

from __future__ import annotations

import asyncio

import pytest

from standalone.errors import ServiceEnded
from standalone.hosted import run_here


async def test_a_service_drains_when_the_context_is_left() -> None:
    """It is told, and waited for."""
    said: list[str] = []

    async def serve(stop: asyncio.Event) -> None:
        await stop.wait()
        said.append("drained")

    async with asyncio.TaskGroup() as tasks, run_here("worker", serve, tasks, stop_timeout_s=5):
        said.append("running")

    assert said == ["running", "drained"]


async def test_a_service_that_does_not_drain_is_cut_off() -> None:
    """After the time it had."""

    async def serve(stop: asyncio.Event) -> None:
        await asyncio.Event().wait()

    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks, run_here("worker", serve, tasks, stop_timeout_s=0.01):
        pass


async def test_a_failed_service_is_reported_by_its_watcher_only() -> None:
    """The services beside it are stopped in order and not cut off."""

    async def fail(stop: asyncio.Event) -> None:
        raise OSError("the address is taken")

    async with asyncio.TaskGroup() as tasks, run_here("gateway", fail, tasks, stop_timeout_s=5) as hosted:
        with pytest.raises(OSError, match="the address is taken"):
            await hosted.watch()


async def test_a_service_that_returns_by_itself_has_ended() -> None:
    """Nobody told it to."""

    async def leave(stop: asyncio.Event) -> None:
        return

    async with asyncio.TaskGroup() as tasks, run_here("gateway", leave, tasks, stop_timeout_s=5) as hosted:
        with pytest.raises(ServiceEnded, match="gateway ended"):
            await hosted.watch()
