"""A real worker on a real nats-server and a real Docker Engine, without a gateway: jobs go straight to the bus."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

from common import catalog, registry, subjects
from common.bus import Bus, connect
from common.feed import StoredEvent
from common.schema import Event, Job, ToolListing, now_ms
from tests.nats_server import login
from worker import app
from worker.docker_engine import DockerEngine, open_docker_engine
from worker.reaper import STORE_LABEL
from worker.settings import WorkerSettings

DEADLINE_S = 40.0


class WorkerRig:
    """Made by `worker_rig()`."""

    def __init__(self, bus: Bus, engine: DockerEngine, settings: WorkerSettings, tasks: asyncio.TaskGroup) -> None:
        self.bus = bus
        self.engine = engine
        self._settings = settings
        self._tasks = tasks
        self._stops: list[tuple[asyncio.Event, asyncio.Task[None]]] = []

    async def apply(self, text: str) -> None:
        await registry.apply(self.bus, catalog.parse(text, "test"))

    def start_worker(self, **settings: Any) -> asyncio.Task[None]:
        stop = asyncio.Event()
        task = self._tasks.create_task(app.run(self._settings.model_copy(update=settings), stop))
        self._stops.append((stop, task))
        return task

    def start_stopping(self, number: int = 0) -> None:
        """SIGTERM's effect."""
        self._stops[number][0].set()

    async def stop_worker(self, number: int = 0) -> None:
        """Returns when the worker has drained."""
        stop, task = self._stops[number]
        stop.set()
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.wait({task})

    async def stop_all(self) -> None:
        for stop, _ in self._stops:
            stop.set()
        if self._stops:
            await asyncio.wait({task for _, task in self._stops})

    async def listing(self, server: str, status: str = "ready") -> ToolListing:
        """Wait until a worker has told what the server offers (or why it does not work)."""
        async with asyncio.timeout(DEADLINE_S), aclosing(registry.watch_listings(self.bus)) as listings:
            async for item in listings:
                if item and item[0] == server and item[1] is not None and item[1].status == status:
                    return item[1]
        raise AssertionError("the watch ended")

    async def workers(self, count: int) -> list[dict[str, Any]]:
        """Wait until so many workers answer with warm pools; their own description."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                answers = await self.bus.gather(subjects.micro_stats("worker"), 0.2)
                found = [answer["endpoints"][0]["data"] for answer in answers if answer["endpoints"]]
                warm = [w for w in found if w["pools"] and all(p["ready"] + p["busy"] > 0 for p in w["pools"])]
                if len(warm) >= count:
                    return warm

    async def enqueue(
        self,
        server: str,
        tool: str,
        arguments: dict[str, Any] | None = None,
        *,
        session: str,
        timeout_ms: int = 20_000,
        queue_ms: int = 60_000,
        heartbeat_ms: int | None = None,
        **fields: Any,
    ) -> Job:
        job = Job(
            id=subjects.new_job_id(),
            session=session,
            tenant="test",
            server=server,
            tool=tool,
            arguments=arguments or {},
            created_ms=now_ms(),
            start_by_ms=now_ms() + queue_ms,
            timeout_ms=timeout_ms,
            heartbeat_ms=heartbeat_ms,
            **fields,
        )
        await self.bus.enqueue_job(job)
        return job

    async def events(self, job: Job) -> list[Event]:
        """All events of a job, once its terminal one is stored."""
        return (await self.events_of([job]))[job.id]

    async def events_of(self, jobs: list[Job]) -> dict[str, list[Event]]:
        """The events of jobs of one session, once all have ended."""
        found: dict[str, list[Event]] = {job.id: [] for job in jobs}
        open_jobs = set(found)
        async with asyncio.timeout(DEADLINE_S), self.bus.subscribe_session(jobs[0].session, 0) as feed:
            async for stored in feed:
                if stored.event.job in found:
                    found[stored.event.job].append(stored.event)
                    if stored.event.terminal:
                        open_jobs.discard(stored.event.job)
                        if not open_jobs:
                            break
        return found

    async def call(self, server: str, tool: str, arguments: dict[str, Any] | None = None, **options: Any) -> Event:
        """Run a job; its terminal event."""
        session = options.pop("session", None) or subjects.new_session_id()
        return (await self.events(await self.enqueue(server, tool, arguments, session=session, **options)))[-1]

    async def until(self, job: Job, type_: str) -> StoredEvent:
        """Wait for the first event of that type."""
        async with asyncio.timeout(DEADLINE_S), self.bus.subscribe_session(job.session, 0) as feed:
            async for stored in feed:
                if stored.event.job == job.id and stored.event.type == type_:
                    return stored
        raise AssertionError("the feed ended")

    async def containers(self) -> list[str]:
        found = await self.engine.containers({STORE_LABEL: self.bus.epoch})
        return [container.id for container in found]


@asynccontextmanager
async def worker_rig(nats_url: str, docker_host: str, **settings: Any) -> AsyncIterator[WorkerRig]:
    """Workers log in as themselves, the test's own connection as the operator.

    On leaving, every worker drains; no container may be left then.
    """
    wanted = WorkerSettings(nats_url=nats_url, docker_host=docker_host, health_port=0, **settings)
    async with AsyncExitStack() as stack:
        bus = await stack.enter_async_context(connect(wanted, "test"))
        engine = await stack.enter_async_context(open_docker_engine(docker_host))
        async with asyncio.TaskGroup() as tasks:
            rig = WorkerRig(bus, engine, wanted.model_copy(update=login("worker")), tasks)
            try:
                yield rig
            finally:
                await rig.stop_all()
        assert await rig.containers() == []
