"""One job from delivery to acknowledgement.

The order is the contract: `started` is stored before the tool sees the call (a read-only tool need not wait for it,
docs/adr/0008), the terminal event before the acknowledgement. Whatever interrupts in between leaves the delivery
unsettled, and the store delivers it again.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

import structlog

from common import metrics
from common.bus import Bus
from common.catalog import ServerSpec
from common.consumer import Delivery
from common.errors import Fenced, PayloadTooLarge, StoreUnavailable
from common.log import get, job_context
from common.schema import DeadLetter, Job, Outcome, now_ms
from common.subjects import jobs as jobs_subject
from worker.container import ToolContainer
from worker.engine import UNPRIVILEGED
from worker.errors import (
    EngineUnavailable,
    JobError,
    JobTimeout,
    PoolExhausted,
    QueueTimeout,
    ResultTooLarge,
    ServerGone,
)
from worker.executors.contract import Call, Executor
from worker.heartbeat import Heartbeat
from worker.journal import Journal
from worker.outbox import Outbox
from worker.pool import Acquired
from worker.redelivery import Drop, End, Start, decide

_log = get(__name__)

MAX_ATTEMPTS = 3
FENCED_RETRIES = 5
BEGIN_TRIES = 2
"""A warm container may die in the moment that it is picked; nothing was handed over then, so another is tried."""
HAND_BACK_DELAY_S = 1.0


class ContainerSource(Protocol):
    """Where a job's container comes from: a pool, or the lease of its session."""

    async def acquire(self) -> Acquired:
        """
        Raises:
            JobError: if there is none and none can be made.
            PoolExhausted: if all are in use.
        """

    async def release(self, container: ToolContainer) -> None:
        """The call is over."""

    async def end(self, container: ToolContainer) -> None:
        """The call cannot be stopped in any other way. Returns when the container is gone."""

    async def post_mortem(self, container: ToolContainer, gone: ServerGone) -> ServerGone:
        """`gone`, with what the engine knows of the cause."""


class ServerContext(Protocol):
    """What the runner needs to know of a job's server."""

    spec: ServerSpec
    executor: Executor
    image_digest: str

    def repeatable(self, tool: str) -> bool: ...

    def read_only(self, tool: str) -> bool: ...


@dataclass
class Ending:
    """How a job ended: the data of its `result` event."""

    outcome: Outcome
    result: dict[str, Any] | None = None
    error: JobError | None = None

    @classmethod
    def of(cls, error: JobError) -> Ending:
        return cls(error.outcome, error=error)

    def as_data(self) -> dict[str, Any]:
        data: dict[str, Any] = {"outcome": self.outcome}
        if self.result is not None:
            data["result"] = self.result
        if self.error is not None:
            data["error"] = self.error.as_dict()
        return data


class _Grip:
    """The container that a job holds, let go of exactly once."""

    def __init__(self, source: ContainerSource, container: ToolContainer) -> None:
        self._source = source
        self._container: ToolContainer | None = container

    def take(self) -> ToolContainer:
        """The container, counted as given one more call."""
        if self._container is None:
            raise ServerGone("the server ended before the call reached it")
        self._container.calls += 1
        return self._container

    async def exchange(self) -> None:
        """
        Raises:
            JobError: if no other container is to be had.
        """
        await self.let_go()
        try:
            self._container = (await self._source.acquire()).container
        except PoolExhausted as exc:
            raise ServerGone("the server ended before the call reached it, and no other container is free") from exc

    async def let_go(self) -> None:
        if self._container is not None:
            container, self._container = self._container, None
            await self._source.release(container)

    async def end(self) -> None:
        """Returns when the container is gone."""
        if self._container is not None:
            container, self._container = self._container, None
            await self._source.end(container)

    async def post_mortem(self, gone: ServerGone) -> ServerGone:
        if self._container is None:
            return gone
        return await self._source.post_mortem(self._container, gone)


class Runner:
    """Runs the jobs of all servers of a worker."""

    def __init__(self, bus: Bus, worker: str, heartbeat: Heartbeat) -> None:
        self._bus = bus
        self._worker = worker
        self._heartbeat = heartbeat
        self._cancels: dict[str, asyncio.Future[None]] = {}
        """Of every job in hand here, by its id: done when it is to stop."""

    def cancel(self, job: str) -> None:
        """Stop a job, if it is in hand here."""
        cancelled = self._cancels.get(job)
        if cancelled is not None and not cancelled.done():
            cancelled.set_result(None)

    def in_hand(self, job: str) -> bool:
        return job in self._cancels

    async def run(self, delivery: Delivery, server: ServerContext, source: ContainerSource) -> None:
        """Returns when the job is settled, handed back, or left for the store to deliver again."""
        job = delivery.job
        self._cancels[job.id] = asyncio.get_running_loop().create_future()
        self._heartbeat.hold(delivery)
        try:
            await self._run(delivery, server, source)
        except (PoolExhausted, EngineUnavailable) as exc:
            metrics.JOBS_HANDED_BACK.labels(job.server).inc()
            _log.info("job handed back", session=job.session, job=job.id, server=job.server, why=str(exc))
            await delivery.hand_back(HAND_BACK_DELAY_S)
        except (StoreUnavailable, Fenced) as exc:
            _log.warning("job left unsettled", session=job.session, job=job.id, server=job.server, why=exc.message)
        except Exception:  # noqa: BLE001 - one job's surprise must not end the others; it is tried again, then dead-lettered
            _log.exception("job failed in the worker", session=job.session, job=job.id, server=job.server)
        finally:
            del self._cancels[job.id]
            self._heartbeat.drop(job.id)

    async def _run(self, delivery: Delivery, server: ServerContext, source: ContainerSource) -> None:
        """Decide by the job's last event, and decide anew whenever the store says that there is a newer one."""
        job = delivery.job
        picked_up_ms = now_ms()
        step: Start | End | Drop = Start(1, 0)
        if delivery.deliveries > 1:
            step = await self._decide(job, server)
        for _ in range(FENCED_RETRIES):
            if isinstance(step, Drop):
                return await self._settle(delivery)
            if isinstance(step, Start) and step.attempt == 1 and picked_up_ms > job.start_by_ms:
                step = End(0, step.last_seq, QueueTimeout(picked_up_ms - job.created_ms))
            try:
                end = step if isinstance(step, End) else None
                if isinstance(step, Start):
                    end = await self._start(step, delivery, server, source, picked_up_ms)
                if end is not None:
                    await self._end(end, delivery)
                return None
            except _Superseded:
                step = await self._decide(job, server)
        raise Fenced(jobs_subject(job.server, job.session), 0)

    async def _decide(self, job: Job, server: ServerContext) -> Start | End | Drop:
        last = await self._bus.last_event(job.session, job.id)
        return decide(last, repeatable=server.repeatable(job.tool), max_attempts=MAX_ATTEMPTS)

    async def _end(self, step: End, delivery: Delivery) -> None:
        """End a job that does not run (again)."""
        job = delivery.job
        if step.error.outcome == "dead_lettered":
            letter = DeadLetter(
                job=job.id,
                reason=step.error.message,
                subject=jobs_subject(job.server, job.session),
                payload=delivery.payload,
                deliveries=delivery.deliveries,
                time_ms=now_ms(),
            )
            await self._bus.dead_letter(job.server, job.session, letter)
        journal = Journal(self._bus, job, step.attempt, step.last_seq)
        try:
            await journal.append("result", Ending.of(step.error).as_data())
        except Fenced as exc:
            raise _Superseded from exc
        self._tell_end(job, step.attempt, Ending.of(step.error), {}, delivery.traceparent)
        await self._settle(delivery)

    async def _start(
        self, step: Start, delivery: Delivery, server: ServerContext, source: ContainerSource, picked_up_ms: int
    ) -> End | None:
        """Run one attempt to its end. Returns an End instead if it could not be started."""
        job = delivery.job
        begun = perf_counter()
        try:
            acquired = await source.acquire()
        except EngineUnavailable:
            raise
        except JobError as exc:
            return End(step.attempt, step.last_seq, exc)
        timings = {"queue_ms": picked_up_ms - job.created_ms, "container_ms": _since_ms(begun)}
        journal = Journal(self._bus, job, step.attempt, step.last_seq)
        started = {
            "worker": self._worker,
            "container": acquired.container.id[:12],
            "warm": acquired.warm,
            "state_lost": acquired.state_lost,
        }
        grip = _Grip(source, acquired.container)
        try:
            begun = perf_counter()
            ending = await self._call(job, server, grip, journal, started)
            timings["tool_ms"] = _since_ms(begun)
            ending = await self._store_result(journal, ending, {"timings": timings, "ran": _ran(server, acquired)})
        except Fenced as exc:
            raise _Superseded from exc
        finally:
            await grip.let_go()
        await self._settle(delivery)
        self._tell_end(job, step.attempt, ending, timings, delivery.traceparent)
        return None

    async def _call(
        self, job: Job, server: ServerContext, grip: _Grip, journal: Journal, started: dict[str, Any]
    ) -> Ending:
        """Store `started`, put the job to the container, wait for its answer, its cancel or its timeout.

        A read-only tool need not wait until `started` is stored: what it does before a refusal has no effect, and is
        stopped (docs/adr/0008).

        Raises:
            Fenced: if the job is another's, or has ended; nothing of it runs here any more.
        """
        outbox = Outbox(journal)
        outbox.started(started)
        async with asyncio.TaskGroup() as tasks:
            pump = tasks.create_task(outbox.pump())
            if not server.read_only(job.tool):
                await outbox.first_settled.wait()
            ending = None if pump.done() else await self._answer(job, server, grip, outbox, pump)
            await outbox.close()
        if fenced := pump.result():
            raise fenced
        assert ending is not None, "the pump ends early only when it was fenced"
        return ending

    async def _answer(
        self, job: Job, server: ServerContext, grip: _Grip, outbox: Outbox, pump: asyncio.Task[Fenced | None]
    ) -> Ending:
        try:
            call = await self._begin(job, server, grip, outbox)
        except JobError as exc:
            return Ending.of(exc)
        cancelled = self._cancels[job.id]
        ends: set[asyncio.Future[Any]] = {call.answer, cancelled, pump}
        await asyncio.wait(ends, timeout=job.timeout_ms / 1000, return_when=asyncio.FIRST_COMPLETED)
        if call.answer.done():
            return await self._ending(call, grip)
        interrupted = Ending("cancelled") if cancelled.done() else Ending.of(JobTimeout(job.timeout_ms))
        if not await call.stop():
            await grip.end()
        # An error is the server's way to confirm that it stopped, or the container's end; an answer is an answer.
        if call.answer.done() and call.answer.exception() is None:
            return await self._ending(call, grip)
        return interrupted

    async def _begin(self, job: Job, server: ServerContext, grip: _Grip, outbox: Outbox) -> Call:
        for _ in range(BEGIN_TRIES - 1):
            try:
                return await server.executor.begin(grip.take(), job, outbox)
            except ServerGone:
                await grip.exchange()
        return await server.executor.begin(grip.take(), job, outbox)

    async def _ending(self, call: Call, grip: _Grip) -> Ending:
        failure = call.answer.exception()
        if isinstance(failure, ServerGone):
            failure = await grip.post_mortem(failure)
        if isinstance(failure, JobError):
            return Ending.of(failure)
        result = call.answer.result()
        return Ending("failed" if result.get("isError") is True else "succeeded", result)

    async def _store_result(self, journal: Journal, ending: Ending, facts: dict[str, Any]) -> Ending:
        """Store the terminal event; an answer that no event can hold becomes the error that says so."""
        try:
            await journal.append("result", ending.as_data() | facts)
        except PayloadTooLarge as exc:
            ending = Ending.of(ResultTooLarge(exc.data["size"], exc.data["limit"]))
            await journal.append("result", ending.as_data() | facts)
        return ending

    async def _settle(self, delivery: Delivery) -> None:
        # A redelivery while the job ran here has made the first ack subject void.
        await (self._heartbeat.current(delivery.job.id) or delivery).ack()

    def _tell_end(
        self, job: Job, attempt: int, ending: Ending, timings: dict[str, float], traceparent: str | None
    ) -> None:
        """The one canonical line of a job, and its metrics."""
        metrics.JOBS_ENDED.labels(job.server, ending.outcome).inc()
        if timings:
            metrics.JOB_QUEUE_SECONDS.labels(job.server).observe(timings["queue_ms"] / 1000)
            metrics.JOB_ACQUIRE_SECONDS.labels(job.server).observe(timings["container_ms"] / 1000)
            metrics.JOB_TOOL_SECONDS.labels(job.server).observe(timings["tool_ms"] / 1000)
        ids = job_context(session=job.session, job=job.id, attempt=attempt, traceparent=traceparent)
        with structlog.contextvars.bound_contextvars(**ids):
            _log.info(
                "job ended",
                server=job.server,
                tool=job.tool,
                outcome=ending.outcome,
                error=ending.error.type if ending.error else None,
                **timings,
            )


class _Superseded(Exception):
    """The job has a newer event than the one that the decision was made by."""


def _since_ms(begun: float) -> float:
    return round((perf_counter() - begun) * 1000, 3)


def _ran(server: ServerContext, acquired: Acquired) -> dict[str, Any]:
    """What the job ran under, so that a caller can hold us to it."""
    spec = server.spec
    return {
        "image": spec.image,
        "image_digest": server.image_digest,
        "runtime": spec.runtime or "default",
        "network": spec.network,
        "user": UNPRIVILEGED,
        "read_only": True,
        "memory_mb": spec.limits.memory_mb,
        "cpus": spec.limits.cpus,
        "pids": spec.limits.pids,
        "scope": spec.scope,
        "warm": acquired.warm,
    }
