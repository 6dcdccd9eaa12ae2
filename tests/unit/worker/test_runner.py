"""One job is run once at a time, however often the store delivers it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from common.bus import Bus
from common.consumer import Delivery
from common.conversations.repository import Conversations
from tests.unit.common.bus_rig import DEADLINE_S, make_job
from worker.container import ToolContainer
from worker.docker_engine import open_docker_engine
from worker.errors import ServerGone
from worker.heartbeat import Heartbeat
from worker.output_stream import OutputLimits
from worker.pool import Acquired
from worker.recording import Recording
from worker.runner import Runner


class NeverFreeSource:
    """A pool whose containers stay in use."""

    def __init__(self) -> None:
        self.asked = 0
        self.waiting = asyncio.Event()

    async def acquire(self) -> Acquired:
        self.asked += 1
        self.waiting.set()
        await asyncio.Event().wait()
        raise AssertionError("nothing sets it")

    async def release(self, container: ToolContainer) -> None:
        raise AssertionError("none was acquired")

    async def end(self, container: ToolContainer) -> None:
        raise AssertionError("none was acquired")

    async def post_mortem(self, container: ToolContainer, gone: ServerGone) -> ServerGone:
        raise AssertionError("none was acquired")


class RepeatableServer:
    """Enough of a server for a job that does not get as far as its container."""

    def repeatable(self, tool: str) -> bool:
        return True

    def read_only(self, tool: str) -> bool:
        return True


async def test_a_job_that_is_delivered_again_while_it_is_in_hand_goes_on_under_the_later_ack_subject(bus: Bus) -> None:
    """Also when both deliveries come in one breath, as they do after a pause that outlived ack_wait."""
    heartbeat = Heartbeat(30)
    source = NeverFreeSource()
    first = Delivery(bus.client, make_job(), b"", "ack.1", 1, 1)
    second = replace(first, ack_subject="ack.2", deliveries=2)
    async with (
        open_docker_engine("unix:///nonexistent/docker.sock") as engine,
        asyncio.timeout(DEADLINE_S),
        asyncio.TaskGroup() as tasks,
    ):
        runner = Runner(
            bus, "w-1", engine, heartbeat, OutputLimits(), Recording(bus, Conversations(bus, compress=True))
        )
        running = tasks.create_task(runner.run(first, RepeatableServer(), source))  # type: ignore[arg-type]
        await source.waiting.wait()
        await runner.run(second, RepeatableServer(), source)  # type: ignore[arg-type]

        assert source.asked == 1
        assert runner.in_hand(first.job.id)
        assert heartbeat.current(first.job.id) is second
        running.cancel()
