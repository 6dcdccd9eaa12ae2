"""One job is run once at a time, however often the store delivers it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from common.bus import Bus
from common.consumer import Delivery
from common.conversations.repository import Conversations
from common.errors import StoreUnavailable
from common.schema import Event, Job, now_ms
from tests.job_lines import job_lines
from tests.unit.common.bus_rig import DEADLINE_S, make_job
from worker.heartbeat import Heartbeat
from worker.output_stream import OutputLimits
from worker.place import Place
from worker.recording import Recording
from worker.runner import Runner


class NeverFree:
    """Places that stay in use."""

    def __init__(self) -> None:
        self.asked = 0
        self.waiting = asyncio.Event()

    async def take(self) -> Place:
        self.asked += 1
        self.waiting.set()
        await asyncio.Event().wait()
        raise AssertionError("nothing sets it")


class Repeatable:
    """The rules of a job that does not get as far as its place."""

    def repeatable(self, job: Job) -> bool:
        return True

    def read_only(self, job: Job) -> bool:
        return True

    async def stopped(self, job: Job, started: Event) -> bool:
        raise AssertionError("no attempt was lost")


class StoreAwayAfterTheEnd(Recording):
    """The terminal event is stored; what follows is not."""

    async def record(self, job: Job, *, again: bool) -> None:
        raise StoreUnavailable("it went away")


async def test_a_job_whose_end_is_stored_is_told_though_it_cannot_be_acknowledged_and_not_again(bus: Bus) -> None:
    """It is delivered once more, and dropped then."""
    job = make_job(record=True, start_by_ms=now_ms() - 1)
    first = Delivery(bus.client, job, b"", "ack.1", 1, 1)
    conversations = Conversations(bus, compress=True)
    recordings = (StoreAwayAfterTheEnd(bus, conversations), Recording(bus, conversations))
    with job_lines() as told:
        for recording, delivery in zip(recordings, (first, replace(first, deliveries=2)), strict=True):
            runner = Runner(bus, "w-1", Heartbeat(30), OutputLimits(), recording)
            await runner.run(delivery, Repeatable(), NeverFree().take)

    [line] = told.of(job.id)
    assert (line["outcome"], line["error"], line["tenant"]) == ("timed_out", "queue_timeout", "test")
    assert line["queue_ms"] is None


async def test_a_job_that_is_delivered_again_while_it_is_in_hand_goes_on_under_the_later_ack_subject(bus: Bus) -> None:
    """Also when both deliveries come in one breath, as they do after a pause that outlived ack_wait."""
    heartbeat = Heartbeat(30)
    places = NeverFree()
    first = Delivery(bus.client, make_job(), b"", "ack.1", 1, 1)
    second = replace(first, ack_subject="ack.2", deliveries=2)
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        runner = Runner(bus, "w-1", heartbeat, OutputLimits(), Recording(bus, Conversations(bus, compress=True)))
        running = tasks.create_task(runner.run(first, Repeatable(), places.take))
        await places.waiting.wait()
        await runner.run(second, Repeatable(), places.take)

        assert places.asked == 1
        assert runner.in_hand(first.job.id)
        assert heartbeat.current(first.job.id) is second
        running.cancel()
