"""One job from delivery to acknowledgement.

The order is the contract: the terminal event is stored before the acknowledgement. Whatever interrupts in between
leaves the delivery unsettled, and the store delivers it again.
"""

from __future__ import annotations

import asyncio
from typing import Final

from common import metrics, tracing
from common.bus import Bus
from common.consumer import Delivery
from common.dead_letters import GivenUp
from common.ending import Ending
from common.errors import Fenced, StoreUnavailable
from common.job_errors import JobError, QueueTimeout
from common.job_line import JobFacts, tell_job_ended
from common.job_spans import job_attributes
from common.log import get
from common.schema import Job, now_ms
from common.subjects import jobs as jobs_subject
from worker.attempt import Attempt, CancelledBeforeStart, Failed, Held
from worker.errors import EngineUnavailable, PoolExhausted
from worker.heartbeat import Heartbeat
from worker.journal import Journal
from worker.output_stream import OutputLimits
from worker.place import JobRules, TakePlace
from worker.proof import OwnerAlive
from worker.recording import Recording
from worker.redelivery import Drop, End, Leave, Past, Prove, Start, Step, after_failure, decide, is_last, unknown

_log = get(__name__)

HAND_BACK_DELAY_S = 1.0
_HANDED_BACK: Final[dict[type[Exception], metrics.HandBackReason]] = {
    PoolExhausted: "pool_exhausted",
    EngineUnavailable: "engine_unavailable",
    OwnerAlive: "owner_alive",
}


class Runner:
    """Runs the jobs of all servers of a worker."""

    def __init__(
        self,
        bus: Bus,
        worker: str,
        heartbeat: Heartbeat,
        output_limits: OutputLimits,
        recording: Recording,
    ) -> None:
        self._bus = bus
        self._worker = worker
        self._output_limits = output_limits
        self._heartbeat = heartbeat
        self._recording = recording
        self._held: dict[str, Held] = {}
        """Every job in hand here, by its id."""
        self.ended = 0
        """Jobs that came to their end here."""

    def cancel(self, job: str) -> None:
        """Stop a job, if it is in hand here."""
        held = self._held.get(job)
        if held is not None and not held.cancelled.done():
            held.cancelled.set_result(None)

    async def recheck_cancels(self) -> None:
        """Obey what was asked for while this worker was away from the bus.

        Raises:
            StoreUnavailable: if the store is away again.
        """
        for held in list(self._held.values()):
            if await self._bus.cancel_requested(held.job.session, held.job.id):
                self.cancel(held.job.id)

    def in_hand(self, job: str) -> bool:
        return job in self._held

    async def run(self, delivery: Delivery, rules: JobRules, take_place: TakePlace) -> None:
        """Returns when the job is settled, handed back, or left for the store to deliver again."""
        job = delivery.job
        self._heartbeat.hold(delivery)
        if job.id in self._held:
            return  # delivered twice in a row: the first run goes on under the newest delivery
        held = Held(delivery, now_ms(), asyncio.get_running_loop().create_future())
        self._held[job.id] = held
        try:
            await self._run(held, rules, take_place)
        except (PoolExhausted, EngineUnavailable, OwnerAlive) as exc:
            metrics.JOBS_HANDED_BACK.labels(job.server, _HANDED_BACK[type(exc)]).inc()
            _log.info("job handed back", session=job.session, job=job.id, server=job.server, why=str(exc))
            await self._current(delivery).hand_back(HAND_BACK_DELAY_S)
        except (StoreUnavailable, Fenced) as exc:
            _log.warning("job left unsettled", session=job.session, job=job.id, server=job.server, why=exc.message)
        except Exception:  # noqa: BLE001 - one job's surprise must not end the others; it is delivered again
            _log.exception("job failed in the worker", session=job.session, job=job.id, server=job.server)
        finally:
            del self._held[job.id]
            self._heartbeat.drop(job.id)

    async def _run(self, held: Held, rules: JobRules, take_place: TakePlace) -> None:
        """Step by step, each decided by what is stored, until the job has ended or is another worker's."""
        job = held.job
        # A first delivery is taken to be just that; the fence tells if it is not.
        step: Step = Start(job.first_attempt, 0) if held.delivery.deliveries == 1 else await self._decide(job, rules)
        while True:
            if isinstance(step, Start) and step.attempt == job.first_attempt and held.picked_up_ms > job.start_by_ms:
                step = End(0, step.last_seq, Ending.of(QueueTimeout(held.picked_up_ms - job.created_ms)))
            try:
                match step:
                    case Leave():
                        return None
                    case Drop():
                        return await self._settle(held.delivery)
                    case End():
                        return await self._end(step, held.delivery)
                    case Prove():
                        step = await self._prove(step, job, rules)
                    case Start():
                        following = await self._start(step, held, rules, take_place)
                        if following is None:
                            return None
                        step = following
            except CancelledBeforeStart:
                step = await self._decide(job, rules)
            except Fenced:
                step = await self._yield(job)

    async def _decide(self, job: Job, rules: JobRules) -> Step:
        return decide(
            await self._past(job),
            repeatable=rules.repeatable(job),
            now_ms=now_ms(),
            ack_wait_ms=int(self._bus.ack_wait_s * 1000),
        )

    async def _past(self, job: Job) -> Past:
        newest = await self._bus.last_event(job.session, job.id)
        if newest is None:
            lapsed = job.created_ms <= await self._bus.oldest_event_ms()
            return Past(None, lapsed=lapsed, first_attempt=job.first_attempt)
        if newest.event.attempt == 0 or newest.event.terminal:
            return Past(newest, first_attempt=job.first_attempt)
        started = await self._bus.started_event(job.session, job.id, newest.event.attempt)
        cancel_requested = await self._bus.cancel_requested(job.session, job.id)
        return Past(newest, started, cancel_requested, first_attempt=job.first_attempt)

    async def _yield(self, job: Job) -> Step:
        """The store has refused an event of ours: the job has ended, or is another worker's by now."""
        newest = await self._bus.last_event(job.session, job.id)
        if newest is not None and newest.event.terminal:
            return Drop()
        _log.warning("job is another worker's", session=job.session, job=job.id, server=job.server)
        return Leave()

    async def _prove(self, step: Prove, job: Job, rules: JobRules) -> End:
        if await rules.stopped(job, step.started):
            return End(step.attempt, step.last_seq, Ending("cancelled"))
        ending = Ending.of(unknown(step.attempt, step.started, cancel_requested=True))
        return End(step.attempt, step.last_seq, ending)

    async def _start(self, step: Start, held: Held, rules: JobRules, take_place: TakePlace) -> Step | None:
        """Run one attempt to its end, and settle the job if it ended. Returns what follows otherwise."""
        attempt = Attempt(self._bus, self._worker, self._output_limits, held, step.attempt, step.last_seq)
        last = is_last(step.attempt, held.job.first_attempt)
        try:
            end = await self._traced(attempt, step, held, rules, take_place, last=last)
        except EngineUnavailable:
            raise
        except JobError as exc:
            ran_before = 0 if step.attempt == held.job.first_attempt else step.attempt - 1
            return End(ran_before, step.last_seq, Ending.of(exc))
        if isinstance(end, Failed):
            _log.info(
                "attempt failed", session=held.job.session, job=held.job.id, attempt=step.attempt, why=str(end.error)
            )
            return after_failure(step.attempt, attempt.last_seq, end.error, first_attempt=held.job.first_attempt)
        self._tell_end(held.delivery, step.attempt, end, attempt.timings)
        await self._settle(held.delivery)
        return None

    async def _traced(
        self, attempt: Attempt, step: Start, held: Held, rules: JobRules, take_place: TakePlace, *, last: bool
    ) -> Ending | Failed:
        """The attempt as a span that continues the trace of the job's message."""
        job = held.job
        attributes = job_attributes(job, "process")
        attributes |= {"messaging.consumer.group.name": job.server, "mcp_orchestrator.attempt": step.attempt}
        with tracing.span(f"process jobs.{job.server}", "consumer", held.delivery.traceparent, attributes) as span:
            end = await attempt.run(rules, take_place, last=last)
            if isinstance(end, Failed):
                span.fail(end.error.type)
                if not last:
                    span.event("retrying", {"error.type": end.error.type})
                return end
            span.set({"mcp_orchestrator.outcome": end.outcome})
            if end.error:
                span.fail(end.error.type)
            return end

    async def _end(self, step: End, delivery: Delivery) -> None:
        """End a job that does not run (again)."""
        job = delivery.job
        if step.ending.outcome == "dead_lettered":
            assert step.ending.error is not None
            await self._bus.dead_letter(
                GivenUp(
                    subject=jobs_subject(job.server, job.session),
                    payload=delivery.payload,
                    error=step.ending.error.as_dict(),
                    seq=delivery.stream_seq,
                    job=job.id,
                    deliveries=delivery.deliveries,
                    traceparent=delivery.traceparent,
                )
            )
        await Journal(self._bus, job, step.attempt, step.last_seq).append("result", step.ending.as_data())
        self._tell_end(delivery, step.attempt, step.ending, {})
        await self._settle(delivery)

    async def _settle(self, delivery: Delivery) -> None:
        if delivery.job.record:
            await self._recording.record(delivery.job, again=delivery.deliveries > 1)
        await self._current(delivery).ack()

    def _current(self, delivery: Delivery) -> Delivery:
        # A redelivery while the job ran here has made the first ack subject void.
        return self._heartbeat.current(delivery.job.id) or delivery

    def _tell_end(self, delivery: Delivery, attempt: int, ending: Ending, timings: dict[str, float]) -> None:
        self.ended += 1
        # An event names this stage by what is waited for, the log and the metrics by what is done.
        stages = {"acquire_ms" if name == "container_ms" else name: value for name, value in timings.items()}
        error = ending.error.type if ending.error else None
        tell_job_ended(JobFacts.of(delivery.job, delivery.traceparent), attempt, ending.outcome, error, stages)
