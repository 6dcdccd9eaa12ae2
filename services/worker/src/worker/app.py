"""The worker process: what it holds, in which order it comes up, and how it goes down.

Down is a written sequence with a budget: not ready → stop pulling → hand back what has not started → finish what
runs within the budget → cut off the rest, unacknowledged → remove every container → leave NATS → close the engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from time import monotonic
from typing import Any

from nats.aio.msg import Msg

from common import registry, subjects
from common.bus import Bus, connect
from common.catalog import ServerSpec
from common.consumer import Delivery
from common.conversations.repository import Conversations
from common.durability import Durability
from common.errors import StoreUnavailable
from common.job_errors import JobError
from common.lifecycle import Budget
from common.log import get
from common.runtime import resident_bytes
from common.schema import ToolListing, now_ms
from worker.boot_gate import BootGate
from worker.chat.server import ChatServer, serve_chat
from worker.docker_engine import open_docker_engine
from worker.errors import EngineUnavailable
from worker.heartbeat import Heartbeat
from worker.models.contract import ChatModel
from worker.models.opening import ModelUnusable, open_model
from worker.presence import health_server, micro_service
from worker.proof import Proof
from worker.reaper import STORE_LABEL, WORKER_LABEL, Reaper, sweep
from worker.recording import Recording
from worker.runner import Runner
from worker.served_server import ServedServer, Worker, serve
from worker.settings import WorkerSettings
from worker.slots import Slots

_log = get(__name__)

WATCH_RETRY_S = 1.0


class WorkerApp:
    """Made by `run()`."""

    def __init__(self, worker: Worker, settings: WorkerSettings, tasks: asyncio.TaskGroup) -> None:
        self._worker = worker
        self._settings = settings
        self._tasks = tasks
        self._served: dict[str, ServedServer] = {}
        self._stops: dict[str, tuple[asyncio.Event, asyncio.Task[None], ServerSpec]] = {}
        self._serving: set[ServedServer] = set()
        """All of them, also those that drain beside their successor."""
        self._catalog_read = False
        self.chat: ChatServer | None = None
        """Set while turns are served."""
        self._budget: Budget | None = None
        self._started = monotonic()

    # --- what is shown --------------------------------------------------------------------------------

    def not_ready(self) -> str:
        if self._budget is not None:
            return "draining"
        if not self._worker.bus.connected:
            return "not connected to NATS"
        if not self._catalog_read:
            return "the catalog was not read yet"
        if self.chat is None:
            return "the queue of chat turns is not set up yet"
        # Of a server that cannot be served the task has ended: nothing is to be waited for.
        coming = [name for name, (_, serving, _) in self._stops.items() if not serving.done()]
        cold = [name for name in coming if name not in self._served or not self._served[name].pool.warmed_up]
        if cold:
            return f"pools are warming up: {', '.join(sorted(cold))}"
        untold = [name for name in coming if not self._served[name].offer_told]
        return f"tools are not listed yet: {', '.join(sorted(untold))}" if untold else ""

    def containers(self) -> set[str]:
        """Ids of all that the pools hold."""
        return {container for served in self._serving for container in served.pool.containers}

    def stats(self) -> dict[str, Any]:
        slots = self._worker.slots
        return {
            "worker": self._worker.id,
            "slots": {"used": slots.used, "limit": slots.limit},
            "pools": [served.stats() for served in self._served.values()],
            "chat": self.chat.stats() if self.chat else None,
            "draining": self._budget is not None,
            "not_ready": self.not_ready(),
            "jobs_ended": self._worker.runner.ended,
            "uptime_s": round(monotonic() - self._started, 1),
            "memory_bytes": resident_bytes() or None,
        }

    # --- servers come and go --------------------------------------------------------------------------

    async def follow_catalog(self) -> None:
        """Serve what the catalog says. Runs until cancelled."""
        while True:
            try:
                async with aclosing(registry.watch_servers(self._worker.bus)) as changes:
                    async for change in changes:
                        if change is None:
                            self._catalog_read = True
                        else:
                            await self._apply(*change)
            except StoreUnavailable as exc:
                _log.warning("catalog cannot be watched, retrying", why=exc.message)
            await asyncio.sleep(WATCH_RETRY_S)

    async def _apply(self, name: str, spec: ServerSpec | None) -> None:
        current = self._stops.get(name)
        if current is not None:
            if current[2] == spec:
                return
            del self._stops[name]
            current[0].set()  # the old one drains beside the new one
        if spec is not None and self._budget is None:
            await self._worker.bus.ensure_server(name, spec.concurrency.cluster)
            stop = asyncio.Event()
            self._stops[name] = stop, self._tasks.create_task(self._serve(name, spec, stop)), spec

    async def _serve(self, name: str, spec: ServerSpec, stop: asyncio.Event) -> None:
        served: ServedServer | None = None
        try:
            async with serve(self._worker, name, spec) as served:
                self._served[name] = served
                self._serving.add(served)
                _log.info("serving", server=name, scope=spec.scope, image=spec.image)
                try:
                    await stop.wait()
                finally:
                    if self._served.get(name) is served:
                        del self._served[name]
                await served.drain(self._budget.left_s if self._budget else self._settings.drain_timeout_s)
        except* JobError as group:
            reason = "; ".join(str(exc) for exc in group.exceptions)
            _log.error("server cannot be served", server=name, why=reason)
            await self._tell_failed(name, spec, reason)
        finally:
            if served is not None:
                self._serving.discard(served)

    async def _tell_failed(self, name: str, spec: ServerSpec, reason: str) -> None:
        """Until the store takes it or the worker drains: by it the gateways refuse calls."""
        while self._budget is None:
            listing = ToolListing(entry=spec.fingerprint, status="failed", reason=reason, time_ms=now_ms())
            try:
                await registry.publish_listing(self._worker.bus, name, listing)
                return
            except StoreUnavailable as exc:
                _log.warning("listing not published, retrying", server=name, why=exc.message)
            await asyncio.sleep(WATCH_RETRY_S)

    async def drain(self) -> None:
        """Returns when every server has drained and every container is gone."""
        self._budget = Budget(self._settings.drain_timeout_s)
        _log.info("draining", budget_s=self._settings.drain_timeout_s, running=self._worker.slots.used)
        for stop, _, _ in self._stops.values():
            stop.set()
        async with asyncio.TaskGroup() as draining:
            if self.chat:
                draining.create_task(self.chat.drain(self._budget.left_s))
            if self._stops:
                await asyncio.wait({task for _, task, _ in self._stops.values()})

    # --- messages to all workers ------------------------------------------------------------------------

    def receive(self, delivery: Delivery) -> bool:
        served = self._served.get(delivery.job.server)
        return served is not None and served.receive(delivery)

    async def on_cancel(self, msg: Msg) -> None:
        self._worker.runner.cancel(msg.subject.split(".")[2])

    async def recheck_cancels(self) -> None:
        """After each lost connection, look for cancels that were not heard. Runs until cancelled."""
        while True:
            await self._worker.bus.reconnection()
            try:
                await self._worker.runner.recheck_cancels()
            except StoreUnavailable as exc:
                _log.warning("cancels cannot be looked up", why=exc.message)

    async def on_close(self, msg: Msg) -> None:
        for served in self._served.values():
            served.leases.give_up(msg.subject.rsplit(".", 1)[-1])


async def run(settings: WorkerSettings, stop: asyncio.Event) -> None:
    """Serve the catalog's servers and chat turns until `stop` is set, then drain. Returns when nothing is left behind.

    Raises:
        ModelUnusable: if the model that is configured cannot be used.
    """
    worker_id = subjects.new_worker_id()
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(open_docker_engine(settings.docker_host))
        bus = await stack.enter_async_context(_connected(settings, worker_id, stop))
        if bus is None:
            return
        model = await stack.enter_async_context(_chat_model(settings))
        heartbeat = Heartbeat(settings.ack_wait_s)
        conversations = Conversations(bus, compress=settings.enable_conversation_compression)
        recording = Recording(bus, conversations)
        worker = Worker(
            id=worker_id,
            bus=bus,
            engine=engine,
            slots=Slots(settings.worker_concurrency),
            runner=Runner(bus, worker_id, heartbeat, settings.output_limits(), recording),
            proof=Proof(bus, engine, worker_id),
            heartbeat=heartbeat,
            boot_gate=BootGate(settings.boots_at_once),
            output_limits=settings.output_limits(),
            labels={WORKER_LABEL: worker_id, STORE_LABEL: bus.epoch},
        )
        async with asyncio.TaskGroup() as tasks:
            app = WorkerApp(worker, settings, tasks)
            async with (
                micro_service(bus, worker_id, app.stats, app.receive),
                health_server(
                    settings.health_host, settings.health_port, app.not_ready, debug_memory=settings.debug_memory
                ) as port,
            ):
                await bus.client.subscribe(subjects.ALL_LIVE_CANCELS, cb=app.on_cancel)
                await bus.client.subscribe(subjects.ALL_CLOSES, cb=app.on_close)
                loops = [
                    tasks.create_task(heartbeat.run()),
                    tasks.create_task(conversations.run()),
                    tasks.create_task(app.follow_catalog()),
                    tasks.create_task(app.recheck_cancels()),
                    tasks.create_task(Durability(settings).watch(bus)),
                    tasks.create_task(Reaper(bus, engine, worker_id, settings.reap_period_s, app.containers).run()),
                ]
                _log.info("worker running", worker=worker_id, health_port=port, concurrency=settings.worker_concurrency)
                try:
                    async with serve_chat(
                        bus,
                        worker_id,
                        worker.runner,
                        heartbeat,
                        conversations,
                        model,
                        settings.chat_limits(),
                    ) as app.chat:
                        await stop.wait()
                        await app.drain()
                finally:
                    for loop in loops:
                        loop.cancel()
        try:
            await sweep(engine, worker_id)
        except (EngineUnavailable, TimeoutError) as exc:
            _log.warning("containers left to the next worker's reaper", why=str(exc))
        _log.info("worker stopped", worker=worker_id)


@asynccontextmanager
async def _chat_model(settings: WorkerSettings) -> AsyncIterator[ChatModel | None]:
    """None where no model is configured.

    Raises:
        ModelUnusable: if what is configured cannot be used.
    """
    try:
        choice = settings.model_choice()
    except (OSError, ValueError) as exc:
        raise ModelUnusable(str(exc)) from exc
    if choice is None:
        yield None
        return
    async with open_model(choice) as model:
        yield model


@asynccontextmanager
async def _connected(settings: WorkerSettings, name: str, stop: asyncio.Event) -> AsyncIterator[Bus | None]:
    """The bus; None if `stop` came while NATS could not be reached, which is retried for as long as it takes."""
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        connecting = tasks.create_task(stack.enter_async_context(connect(settings, f"worker {name}")))
        stopping = tasks.create_task(stop.wait())
        await asyncio.wait({connecting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not connecting.done():
            connecting.cancel()
            yield None
        else:
            yield connecting.result()
