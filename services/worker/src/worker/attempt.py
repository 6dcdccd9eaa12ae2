"""One attempt of a job: the place where it runs, the call, and what it tells on the way to its end.

`started` is stored before the tool sees the call (a read-only tool need not wait for it, docs/adr/0008). Every event is
stored behind the one before, so that whoever has lost the job is refused by the store (docs/adr/0002).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from common import metrics, tracing
from common.bus import Bus
from common.consumer import Delivery
from common.ending import Ending
from common.errors import Fenced, PayloadTooLarge
from common.job_errors import JobError
from common.schema import Job
from worker.artifacts import discard_output, keep_output, with_links
from worker.errors import AttemptLost, EngineUnavailable, HeartbeatTimeout, JobTimeout, ResultTooLarge, ServerGone
from worker.executors.contract import Call
from worker.journal import Journal
from worker.outbox import Outbox
from worker.output_stream import OutputLimits
from worker.place import JobRules, Place, TakePlace

STARTED_REPEATS = 3
"""How often in a resume window a silent attempt says again that it has started."""
BEGIN_TRIES = 2
"""A warm container may die in the moment that it is picked; nothing was handed over then, so another is tried."""


@dataclass(frozen=True)
class Failed:
    """Nothing of the attempt runs any more, and the job may be run again."""

    error: JobError


@dataclass(frozen=True)
class Held:
    """A job in hand here."""

    delivery: Delivery
    picked_up_ms: int
    cancelled: asyncio.Future[None]
    """Done when a client wants it stopped."""

    @property
    def job(self) -> Job:
        return self.delivery.job


class Attempt:
    """Made for attempt `number`, behind the event with number `last_seq`. `run()` once."""

    def __init__(self, bus: Bus, worker: str, limits: OutputLimits, held: Held, number: int, last_seq: int) -> None:
        self._bus = bus
        self._worker = worker
        self._limits = limits
        self._held = held
        self._job = held.job
        self._number = number
        self._journal = Journal(bus, held.job, number, last_seq)
        self.timings: dict[str, float] = {}

    @property
    def last_seq(self) -> int:
        """Number of its last event."""
        return self._journal.last_seq

    async def run(self, rules: JobRules, take_place: TakePlace, *, last: bool) -> Ending | Failed:
        """Returns when its end is stored: the job's, or (unless it is the `last`) a failure that another may follow.

        Raises:
            Fenced: if the job is another's, or has ended; nothing of it runs here any more.
            CancelledBeforeStart: if a client has asked for its end, and nothing of this attempt ran.
            PoolExhausted, EngineUnavailable: if there is no place now; nothing was stored.
            JobError: if there is none at all; nothing was stored.
        """
        if self._held.cancelled.done():
            raise CancelledBeforeStart
        begun = perf_counter()
        with tracing.span("acquire", "internal", None, {}):
            place = await take_place()
        self.timings = {
            "queue_ms": self._held.picked_up_ms - self._job.created_ms,
            "container_ms": _since_ms(begun),
        }
        try:
            if self._held.cancelled.done():
                raise CancelledBeforeStart
            if self._number > self._job.first_attempt:
                metrics.JOBS_RETRIED.labels(self._job.server).inc()
            begun = perf_counter()
            outbox = Outbox(
                self._bus, self._job, self._journal, self._limits, self._bus.limits.resume_window_s / STARTED_REPEATS
            )
            end = await self._call(rules, place, outbox)
            self.timings["tool_ms"] = _since_ms(begun)
            if isinstance(end, Failed):
                await discard_output(self._bus, outbox.streams.values())
                if not last:
                    await self._journal.append("retrying", {"error": end.error.as_dict()})
                return end
            facts: dict[str, Any] = {"timings": self.timings, "ran": place.conditions()}
            if outbox.streams:
                facts["output"] = await keep_output(self._bus, self._job, self._limits, outbox.streams.values())
            return await self._store_result(with_links(end, facts.get("output", {})), facts)
        finally:
            await place.let_go()

    def _started(self, place: Place) -> dict[str, Any]:
        again = {"discard": True} if self._number > self._job.first_attempt else {}
        return again | {"worker": self._worker} | place.described()

    async def _call(self, rules: JobRules, place: Place, outbox: Outbox) -> Ending | Failed:
        """Store `started`, put the job to its place, wait for its answer, its cancel or its timeout.

        A read-only tool need not wait until `started` is stored: what it does before a refusal has no effect, and is
        stopped.
        """
        outbox.started(self._started(place))
        end: Ending | Failed | None = None
        async with asyncio.TaskGroup() as tasks:
            pump = tasks.create_task(outbox.pump())
            if not rules.read_only(self._job):
                await outbox.started_settled.wait()
            if not pump.done():
                end = await self._answer(rules, place, outbox, pump)
            await outbox.close()
        if fenced := pump.result():
            await discard_output(self._bus, outbox.streams.values())
            raise fenced
        if outbox.fault.done() and not isinstance(end, Failed):
            return Ending.of(outbox.fault.result())
        assert end is not None, "the pump ends early only when it was fenced"
        return end

    async def _answer(
        self, rules: JobRules, place: Place, outbox: Outbox, pump: asyncio.Task[Fenced | None]
    ) -> Ending | Failed:
        try:
            call = await self._begin(place, outbox, pump)
        except (ServerGone, EngineUnavailable) as exc:
            return Failed(exc)  # it did not reach a tool, so it may be repeated whatever the tool is
        except JobError as exc:
            return Ending.of(exc)
        interrupted = await self._wait(call, outbox, pump)
        if interrupted is None:
            return await self._ending(call, rules, place)
        if not await call.stop():
            await place.end()
        # An error is the server's way to confirm that it stopped, or the container's end; an answer is an answer.
        if call.answer.done() and call.answer.exception() is None:
            return await self._ending(call, rules, place)
        return interrupted

    async def _begin(self, place: Place, outbox: Outbox, pump: asyncio.Task[Fenced | None]) -> Call:
        for _ in range(BEGIN_TRIES - 1):
            try:
                return await place.begin(self._job, outbox)
            except ServerGone:
                await place.exchange()
                # Stored before the call: where this worker is lost, the call is found and ended by it.
                await outbox.started_elsewhere(self._started(place))
                if pump.done():
                    raise  # the job is another worker's
        return await place.begin(self._job, outbox)

    async def _wait(self, call: Call, outbox: Outbox, pump: asyncio.Task[Fenced | None]) -> Ending | None:
        """None when the call has ended; else why it has to be stopped."""
        cancelled = self._held.cancelled
        ends: set[asyncio.Future[Any]] = {call.answer, cancelled, pump, outbox.fault}
        loop = asyncio.get_running_loop()
        timeout_at = loop.time() + self._job.timeout_ms / 1000
        heartbeat_ms = self._job.heartbeat_ms
        while True:
            silent_at = outbox.told_at + heartbeat_ms / 1000 if heartbeat_ms else timeout_at
            wait_s = max(0.0, min(timeout_at, silent_at) - loop.time())
            done, _ = await asyncio.wait(ends, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            if call.answer.done():
                return None
            if outbox.fault.done():
                return Ending.of(outbox.fault.result())
            if done:
                return Ending("cancelled")  # or fenced, where nothing is told any more
            if loop.time() >= timeout_at:
                return Ending.of(JobTimeout(self._job.timeout_ms))
            if heartbeat_ms and loop.time() >= outbox.told_at + heartbeat_ms / 1000:
                return Ending.of(HeartbeatTimeout(heartbeat_ms))

    async def _ending(self, call: Call, rules: JobRules, place: Place) -> Ending | Failed:
        failure = call.answer.exception()
        if isinstance(failure, ServerGone):
            failure = await place.post_mortem(failure)
        if isinstance(failure, AttemptLost) and rules.repeatable(self._job):
            return Failed(failure)
        if isinstance(failure, JobError):
            return Ending.of(failure)
        result = call.answer.result()
        return Ending("failed" if result.get("isError") is True else "succeeded", result)

    async def _store_result(self, ending: Ending, facts: dict[str, Any]) -> Ending:
        """Store the terminal event; an answer that no event can hold becomes the error that says so."""
        try:
            await self._journal.append("result", ending.as_data() | facts)
        except PayloadTooLarge as exc:
            ending = Ending.of(ResultTooLarge(exc.data["size"], exc.data["limit"]))
            await self._journal.append("result", ending.as_data() | facts)
        return ending


class CancelledBeforeStart(Exception):
    """A client has asked for the end of a job whose next attempt has not begun."""


def _since_ms(begun: float) -> float:
    return round((perf_counter() - begun) * 1000, 3)
