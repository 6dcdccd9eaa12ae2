"""Turns on a real store, asking a provider of the test's own over HTTP; the tools are run by the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from common import catalog, registry, subjects
from common.bus import Bus
from common.consumer import Delivery
from common.conversations.message import Message
from common.conversations.repository import Conversations
from common.schema import Event, Job, Outcome, SessionRecord, ToolListing, now_ms
from common.streams import SESSIONS_BUCKET
from common.subjects import CHAT
from tests.model_server import ModelServer, run_model_server
from tests.nats_server import NatsServer
from tests.unit.common.bus_rig import DEADLINE_S, SESSION, make_event, open_bus, until
from worker.chat.limits import ChatLimits
from worker.chat.server import serve_chat
from worker.heartbeat import Heartbeat
from worker.models.contract import ChatModel
from worker.models.opening import ModelChoice, Provider, open_model
from worker.output_stream import OutputLimits
from worker.recording import Recording
from worker.runner import Runner

ACK_WAIT_S = 1.0
ANY_OBJECT = {"type": "object"}

LIMITS = ChatLimits(
    turns=10,
    steps=10,
    tokens=1_000_000,
    reply_tokens=1_000,
    result_chars=2_000,
    history_chars=100_000,
    system_prompt="Be brief.",
)

Answer = Callable[[Job], Awaitable[dict[str, Any]]]


def text_result(text: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": text}]}


@dataclass
class ToolServer:
    """Runs the jobs of one server as the test says, and remembers them."""

    bus: Bus
    name: str
    jobs: list[Job] = field(default_factory=list)
    arrived: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def serve(self, answer: Answer, outcome: Outcome = "succeeded") -> None:
        """Runs until cancelled."""
        async with self.bus.consume_jobs(self.name, lambda: 10) as consumer, asyncio.TaskGroup() as tasks:
            async for delivery in consumer:
                tasks.create_task(self._run(delivery, answer, outcome))

    async def _run(self, delivery: Delivery, answer: Answer, outcome: Outcome) -> None:
        job = delivery.job
        async with self.arrived:
            self.jobs.append(job)
            self.arrived.notify_all()
        seq = await self.bus.publish_event(make_event(job.id, "started", job.session), expected=0)
        result = await answer(job)
        data = result if "outcome" in result else {"outcome": outcome, "result": result}
        await self.bus.publish_event(make_event(job.id, "result", job.session, **data), expected=seq)
        await delivery.ack()

    async def until_jobs(self, count: int) -> list[Job]:
        async with asyncio.timeout(DEADLINE_S), self.arrived:
            await self.arrived.wait_for(lambda: len(self.jobs) >= count)
        return self.jobs


class Worker:
    """A process that serves turns, as far as they are concerned."""

    def __init__(self) -> None:
        self.id = subjects.new_worker_id()
        self.runner: Runner
        self._task: asyncio.Task[None]

    async def start(self, tasks: asyncio.TaskGroup, url: str, choice: ModelChoice | None, limits: ChatLimits) -> None:
        up = asyncio.Event()
        self._task = tasks.create_task(self._serve(url, choice, limits, up))
        async with asyncio.timeout(DEADLINE_S):
            await up.wait()

    async def _serve(self, url: str, choice: ModelChoice | None, limits: ChatLimits, up: asyncio.Event) -> None:
        async with AsyncExitStack() as stack:
            bus = await stack.enter_async_context(open_bus(NatsAt(url), ack_wait_s=ACK_WAIT_S))  # type: ignore[arg-type]
            model: ChatModel | None = await stack.enter_async_context(open_model(choice)) if choice else None
            conversations = Conversations(bus, compress=True)
            heartbeat = Heartbeat(ACK_WAIT_S)
            self.runner = Runner(bus, self.id, heartbeat, OutputLimits(), Recording(bus, conversations))
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            beating = tasks.create_task(heartbeat.run())
            await bus.client.subscribe(subjects.ALL_LIVE_CANCELS, cb=self._on_cancel)
            stack.callback(beating.cancel)
            await stack.enter_async_context(
                serve_chat(bus, self.id, self.runner, heartbeat, conversations, model, limits)
            )
            up.set()
            await asyncio.Event().wait()

    async def _on_cancel(self, msg: Any) -> None:
        self.runner.cancel(msg.subject.split(".")[2])

    async def lose(self) -> None:
        """As a kill: nothing is settled, and nothing tells of it."""
        self._task.cancel()
        await asyncio.wait({self._task})


@dataclass(frozen=True)
class NatsAt:
    url: str


class ChatRig:
    def __init__(self, bus: Bus, url: str, provider: ModelServer, tasks: asyncio.TaskGroup) -> None:
        self.bus = bus
        self.provider = provider
        self.conversations = Conversations(bus, compress=True)
        self._url = url
        self._tasks = tasks
        self._owned: list[asyncio.Task[None]] = []
        self._workers: list[Worker] = []

    # --- what there is --------------------------------------------------------------------------------

    async def open_session(self, allow: list[str] | None = None) -> None:
        record = SessionRecord(tenant="test", created_ms=now_ms(), allow=allow)
        await self.bus.put(SESSIONS_BUCKET, SESSION, record.encode())

    async def offer(self, *names: str, tools: tuple[str, ...] = ("add",), entry: str = "{image: none}") -> None:
        """Servers of the catalog, and what a worker has heard that they offer."""
        specs = catalog.parse(f"servers: {{{', '.join(f'{name}: {entry}' for name in names)}}}", "test")
        await registry.apply(self.bus, specs)
        listed = [{"name": tool, "description": f"Does {tool}.", "inputSchema": ANY_OBJECT} for tool in tools]
        for name, spec in specs.items():
            listing = ToolListing(entry=spec.fingerprint, status="ready", era="legacy", tools=listed)
            await registry.publish_listing(self.bus, name, listing)

    def tool_server(self, name: str, answer: Answer) -> ToolServer:
        server = ToolServer(self.bus, name)
        self._owned.append(self._tasks.create_task(server.serve(answer)))
        return server

    async def worker(self, limits: ChatLimits = LIMITS, provider: Provider | None = "openai") -> Worker:
        """Without a provider it has no model."""
        worker = Worker()
        choice = None
        if provider is not None:
            url = self.provider.openai_url if provider == "openai" else self.provider.anthropic_url
            choice = ModelChoice(provider, "test", url, "sk-secret", retries=1, timeout_s=DEADLINE_S)
        await worker.start(self._tasks, self._url, choice, limits)
        self._workers.append(worker)
        return worker

    # --- turns ----------------------------------------------------------------------------------------

    async def send(self, content: str, **fields: Any) -> Job:
        turn = Job(
            id=subjects.new_job_id(),
            session=SESSION,
            tenant="test",
            server=CHAT,
            tool="send",
            kind="chat",
            arguments={"content": content, "call_timeout_ms": 30_000},
            created_ms=now_ms(),
            start_by_ms=now_ms() + 60_000,
            timeout_ms=60_000,
        ).model_copy(update=fields)
        await self.bus.enqueue_job(turn)
        return turn

    async def events(self, job: str, until: Callable[[Event], bool] = lambda event: event.terminal) -> list[Event]:
        """Those of a job, in order, up to the first that is looked for."""
        found: list[Event] = []
        async with asyncio.timeout(DEADLINE_S), self.bus.subscribe_session(SESSION, 0) as feed:
            async for stored in feed:
                if stored.event.job == job:
                    found.append(stored.event)
                    if until(stored.event):
                        return found
        raise AssertionError("the feed ended")

    async def end_of(self, turn: Job) -> dict[str, Any]:
        return (await self.events(turn.id))[-1].data

    async def until_settled(self) -> None:
        """Returns when no job is in the queue: a job is acknowledged behind its terminal event."""

        async def empty() -> bool:
            return not await self.bus.unfinished_jobs(SESSION)

        await until(empty)

    async def decide(self, call: str, *, approved: bool) -> None:
        event = make_event(call, "decision", SESSION, attempt=0, approved=approved)
        await self.bus.publish_event(event, expected=0)

    async def messages(self) -> list[Message]:
        return [each.message for each in (await self.conversations.messages(SESSION)).messages]

    async def close(self) -> None:
        for task in self._owned:
            task.cancel()
        for worker in self._workers:
            await worker.lose()


@asynccontextmanager
async def chat_rig(server: NatsServer) -> AsyncIterator[ChatRig]:
    async with (
        open_bus(server, ack_wait_s=ACK_WAIT_S) as bus,
        run_model_server() as provider,
        asyncio.TaskGroup() as tasks,
    ):
        rig = ChatRig(bus, server.url, provider, tasks)
        try:
            yield rig
        finally:
            await rig.close()


def told_to_model(provider: ModelServer, role: Literal["system", "user", "assistant", "tool"]) -> list[Any]:
    """What the last request has of that role, by OpenAI's protocol."""
    return [message for message in provider.requests[-1].body["messages"] if message["role"] == role]
