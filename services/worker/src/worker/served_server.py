"""One server of the catalog as this worker serves it: pool, queue, leases, from start to drain."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from common import metrics, registry
from common.bus import Bus
from common.catalog import ServerSpec
from common.consumer import Delivery, JobConsumer
from common.errors import StoreUnavailable
from common.job_errors import JobError
from common.log import get
from common.schema import Event, Job, ToolListing, now_ms
from worker.boot_gate import BootGate
from worker.container import ToolContainer, container_spec
from worker.engine import ContainerEngine
from worker.errors import ContainerStartFailed, PoolExhausted, ServerGone
from worker.executors.contract import Beginner, Executor
from worker.executors.exec import IDLE_COMMAND, ExecExecutor
from worker.executors.files import FilesExecutor
from worker.executors.mcp import McpExecutor
from worker.grip import take_hold
from worker.heartbeat import Heartbeat
from worker.leases import Lease, Leases
from worker.output_stream import OutputLimits
from worker.pool import Acquired, Pool
from worker.proof import Proof
from worker.runner import Runner
from worker.slots import Slots
from worker.uploads import Uploads

_log = get(__name__)

ACQUIRE_TIMEOUT_S = 10.0
"""How long a job may wait for a container that others use, before it goes back to the queue."""
OFFER_RETRY_MIN_S = 1.0
OFFER_RETRY_MAX_S = 60.0
OFFER_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Worker:
    """What all servers of a worker share."""

    id: str
    bus: Bus
    engine: ContainerEngine
    slots: Slots
    runner: Runner
    proof: Proof
    heartbeat: Heartbeat
    boot_gate: BootGate
    output_limits: OutputLimits
    labels: dict[str, str]


class ServedServer:
    """Made by `serve()`."""

    def __init__(self, worker: Worker, name: str, spec: ServerSpec, tasks: asyncio.TaskGroup) -> None:
        self.name = name
        self.spec = spec
        self.image_digest = ""
        self.engine_id = ""
        self._worker = worker
        self._tasks = tasks
        self._tools: dict[str, dict[str, Any]] = {}
        self._offer_known = asyncio.Event()
        """Set once the server was asked what it offers: without the hints of its tools no repeat can be decided."""
        self.offer_told = False
        """What it offers, or why it does not work, was published."""
        self._jobs: set[asyncio.Task[None]] = set()
        self._placing = 0
        self._to_hand_back = 0
        self._draining = False
        self._consumer: JobConsumer | None = None
        self.executor: Executor
        command = spec.command
        if spec.kind == "exec":
            self.executor = ExecExecutor(worker.engine, tasks)
            command = command or list(IDLE_COMMAND)
        else:
            self.executor = McpExecutor(spec.timeouts.start_s, tasks, worker.output_limits)
        self._files = FilesExecutor(
            worker.engine,
            tasks,
            Uploads(worker.bus),
            files_mb=spec.limits.files_mb,
            max_file_bytes=worker.output_limits.most,
        )
        wanted = container_spec(name, spec, _environment(spec), command, worker.labels)
        self.pool = Pool(name, spec, wanted, self.executor, worker.engine, tasks, worker.boot_gate)
        self.leases = Leases(
            worker.bus,
            worker.id,
            name,
            self.pool,
            worker.heartbeat,
            tasks,
            self._work_lease,
            idle_s=spec.timeouts.idle_s,
            acquire_timeout_s=ACQUIRE_TIMEOUT_S,
        )

    # --- ContainerSource of shared and call scope: straight from the pool -------------------------------

    async def acquire(self) -> Acquired:
        return await self.pool.acquire(ACQUIRE_TIMEOUT_S)

    async def release(self, container: ToolContainer) -> None:
        await self.pool.release(container)

    async def end(self, container: ToolContainer) -> None:
        await self.pool.end(container)

    async def post_mortem(self, container: ToolContainer, gone: ServerGone) -> ServerGone:
        return await self.pool.post_mortem(container, gone)

    # --- jobs -----------------------------------------------------------------------------------------

    def executor_of(self, job: Job) -> Beginner:
        return self._files if job.kind == "files" else self.executor

    def repeatable(self, job: Job) -> bool:
        """May a second attempt of it run?"""
        if job.kind == "files":
            return True  # the same file put twice is the same file
        return self.read_only(job) or self.spec.idempotent(job.tool, self._annotations(job.tool))

    def read_only(self, job: Job) -> bool:
        if job.kind == "files":
            return job.tool != "put"
        return self.spec.read_only(job.tool, self._annotations(job.tool))

    async def stopped(self, job: Job, started: Event) -> bool:
        return await self._worker.proof.is_dead(started)

    def _annotations(self, tool: str) -> dict[str, Any]:
        annotations = self._tools.get(tool, {}).get("annotations")
        return annotations if isinstance(annotations, dict) else {}

    def room(self) -> int:
        """How many more jobs may come; none before it is known what they may ask for."""
        if not self._offer_known.is_set():
            return 0
        return max(0, self._worker.slots.room(self.name) - self._placing)

    async def take_jobs(self, consumer: JobConsumer) -> None:
        """Run what the queue delivers. Runs until cancelled; the jobs themselves go on."""
        self._consumer = consumer
        async for delivery in consumer:
            if self._worker.runner.in_hand(delivery.job.id):
                # Delivered again because a heartbeat was late: the job goes on under the new ack subject.
                self._worker.heartbeat.hold(delivery)
            elif self._draining:
                await delivery.hand_back()  # asked for before; what started now would lose its container
            elif self.spec.scope == "session":
                self._own(self._place(delivery))
            elif self._to_hand_back == 0 and self._worker.slots.try_take(self.name):
                self._own(self._run_pooled(delivery))
            else:
                await self._hand_back(delivery, consumer)

    async def _hand_back(self, delivery: Delivery, consumer: JobConsumer) -> None:
        """Beyond the limit. What is still on its way goes back too, or a later job would overtake this one."""
        if self._to_hand_back:
            self._to_hand_back -= 1
        else:
            self._to_hand_back = consumer.outstanding
        metrics.JOBS_HANDED_BACK.labels(self.name, "no_slot").inc()
        await delivery.hand_back()

    def _own(self, job: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._tasks.create_task(job)
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)
        return task

    async def _run_pooled(self, delivery: Delivery) -> None:
        try:
            await self._worker.runner.run(delivery, self, partial(take_hold, self, self))
        finally:
            self._worker.slots.release(self.name)

    # --- jobs of session scope ------------------------------------------------------------------------

    async def _place(self, delivery: Delivery) -> None:
        self._placing += 1
        try:
            await self.leases.place(delivery)
        finally:
            self._placing -= 1
            self.wake()

    def receive(self, delivery: Delivery) -> bool:
        """A job that another worker hands over. False if its lease is not held here (any more)."""
        return not self._draining and self.leases.receive(delivery)

    async def _work_lease(self, lease: Lease) -> None:
        """Run a lease's jobs one after the other. Runs until cancelled, between jobs."""
        while True:
            delivery = await lease.next_job(self._worker.bus)
            with lease.running(delivery):
                await asyncio.wait({self._own(self._run_leased(delivery, lease))})
            if self._draining:
                self.leases.give_up(lease.session)  # nobody has to wait for the other sessions' jobs

    async def _run_leased(self, delivery: Delivery, lease: Lease) -> None:
        await self._worker.slots.take(self.name)
        try:
            if self._draining:
                await self._worker.heartbeat.hand_back(delivery)
            else:
                await self._worker.runner.run(delivery, self, partial(take_hold, self, lease))
        finally:
            self._worker.slots.release(self.name)

    def wake(self) -> None:
        """There may be room for more."""
        if self._consumer is not None:
            self._consumer.wake()

    # --- what the gateways are told -------------------------------------------------------------------

    async def tell_offer(self) -> None:
        """Publish what the server offers, or why it does not work, until it was told once that it works."""
        wait_s = OFFER_RETRY_MIN_S
        while True:
            try:
                listing = await self._listing()
            except (JobError, PoolExhausted, TimeoutError) as exc:
                reason = exc.message if isinstance(exc, JobError) else str(exc) or "it did not list its tools in time"
                listing = ToolListing(entry=self.spec.fingerprint, status="failed", reason=reason, time_ms=now_ms())
            self._offer_known.set()
            self.wake()
            try:
                if listing.status == "ready" or not self._tools:
                    await registry.publish_listing(self._worker.bus, self.name, listing)
                self.offer_told = True
                if listing.status == "ready":
                    return
            except StoreUnavailable as exc:
                _log.warning("listing not published", server=self.name, why=exc.message)
            await asyncio.sleep(wait_s)
            wait_s = min(OFFER_RETRY_MAX_S, wait_s * 2)

    async def _listing(self) -> ToolListing:
        self.engine_id = await self._worker.engine.identity()
        self.image_digest = await self._worker.engine.image_digest(self.spec.image)
        acquired = await self.pool.acquire(ACQUIRE_TIMEOUT_S)
        try:
            async with asyncio.timeout(OFFER_TIMEOUT_S):
                offer = await self.executor.offer(acquired.container)
        except ServerGone as exc:
            raise await self.pool.post_mortem(acquired.container, exc) from exc
        finally:
            await self.pool.put_back(acquired.container)
        self._tools = {tool["name"]: tool for tool in offer.tools}
        return ToolListing(
            entry=self.spec.fingerprint,
            status="ready",
            image_digest=self.image_digest,
            era=offer.era,
            server_info=offer.server_info,
            tools=offer.tools,
            time_ms=now_ms(),
        )

    # --- the end --------------------------------------------------------------------------------------

    async def drain(self, budget_s: float) -> None:
        """Stop asking, hand back what has not started, let the rest end within the budget; cut off what is left."""
        self._draining = True
        if self._consumer is not None:
            self._consumer.stop_asking()
        await self.leases.drain()
        if self._jobs:
            _, late = await asyncio.wait(set(self._jobs), timeout=budget_s)
            for job in late:
                job.cancel()
            if late:
                await asyncio.wait(late)

    def stats(self) -> dict[str, Any]:
        return {**self.pool.stats(), "leases": len(self.leases)}


@asynccontextmanager
async def serve(worker: Worker, name: str, spec: ServerSpec) -> AsyncIterator[ServedServer]:
    """Serve a server while the context is open. Call `drain()` before leaving; leaving removes every container.

    Raises:
        ContainerStartFailed: if a secret that the entry names cannot be read here.
    """
    metrics.create_worker_labels(name)
    async with asyncio.TaskGroup() as tasks:
        served = ServedServer(worker, name, spec, tasks)
        worker.slots.add_server(name, _slot_limit(spec), served.wake)
        loops = [
            tasks.create_task(served.pool.keep()),
            tasks.create_task(served.leases.keep()),
            tasks.create_task(served.tell_offer()),
        ]
        try:
            async with worker.bus.consume_jobs(name, served.room) as consumer:
                taking = tasks.create_task(served.take_jobs(consumer))
                try:
                    yield served
                finally:
                    taking.cancel()
        finally:
            worker.slots.remove_server(name, served.wake)
            for loop in loops:
                loop.cancel()
            await served.leases.close()
            await served.pool.close()


def _slot_limit(spec: ServerSpec) -> int:
    """No more jobs at once than the pool's containers can serve, so that none waits there with a slot in its hand."""
    each = spec.concurrency.per_container if spec.scope == "shared" else 1
    return min(spec.concurrency.per_worker, spec.pool.max * each)


def _environment(spec: ServerSpec) -> dict[str, str]:
    """The entry's environment with its secrets looked up, here and now, on this worker."""
    environment = dict(spec.env)
    for name, reference in spec.secrets.items():
        kind, _, place = reference.partition(":")
        try:
            environment[name] = os.environ[place] if kind == "env" else Path(place).read_text().rstrip("\n")
        except (KeyError, OSError) as exc:
            raise ContainerStartFailed(f"secret {name} ({reference}) cannot be read on the worker") from exc
    return environment
