"""The server `chat` as this worker serves it: turns from the queue, so many at once, from start to drain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from common import metrics
from common.bus import Bus
from common.consumer import Delivery, JobConsumer
from common.conversations.repository import Conversations
from common.log import get
from common.schema import Event, Job
from common.subjects import CHAT
from worker.chat.call import TurnCall, TurnPlace
from worker.chat.calls import Calls
from worker.chat.limits import ChatLimits
from worker.chat.story import patiently
from worker.chat.turn import Turn
from worker.heartbeat import Heartbeat
from worker.liveness import answers
from worker.models.contract import ChatModel
from worker.outbox import Outbox
from worker.place import Place
from worker.proof import OwnerAlive
from worker.runner import Runner

_log = get(__name__)

CLUSTER_TURNS: Final = 10_000
"""Turns that run at once on all workers: more wait, which costs them nothing."""


class ChatServer:
    """Made by `serve_chat()`. The `JobRules` of turns."""

    def __init__(
        self,
        bus: Bus,
        worker: str,
        runner: Runner,
        heartbeat: Heartbeat,
        conversations: Conversations,
        model: ChatModel | None,
        limits: ChatLimits,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._bus = bus
        self._worker = worker
        self._runner = runner
        self._heartbeat = heartbeat
        self._conversations = conversations
        self._model = model
        self._limits = limits
        self._tasks = tasks
        self._turns: set[asyncio.Task[None]] = set()
        self._consumer: JobConsumer | None = None

    # --- JobRules -------------------------------------------------------------------------------------

    def repeatable(self, job: Job) -> bool:
        """Another attempt goes on from the last stored step."""
        return True

    def read_only(self, job: Job) -> bool:
        return False

    async def stopped(self, job: Job, started: Event) -> bool:
        """A turn ends with its process; its calls are ended."""
        owner = str(started.data.get("worker", ""))
        if owner != self._worker and await answers(self._bus, owner):
            raise OwnerAlive(f"worker {owner} answers")
        calls = Calls(self._bus, job, None)
        async with calls.following():
            await calls.end([call async for call in self._calls_of(job)])
        return True

    async def _calls_of(self, job: Job) -> AsyncIterator[str]:
        async for stored in self._bus.job_events(job.session, job.id):
            if stored.event.type == "step":
                for call in stored.event.data["calls"]:
                    yield str(call["job"])

    # --- turns ----------------------------------------------------------------------------------------

    def room(self) -> int:
        return max(0, self._limits.turns - len(self._turns))

    async def take_turns(self, consumer: JobConsumer) -> None:
        """Run what the queue delivers. Runs until cancelled; the turns themselves go on."""
        self._consumer = consumer
        async for delivery in consumer:
            if self._runner.in_hand(delivery.job.id):
                self._heartbeat.hold(delivery)  # its heartbeat was late: it goes on under the new ack subject
                continue
            task = self._tasks.create_task(self._run(delivery))
            self._turns.add(task)
            task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._turns.discard(task)
        if self._consumer is not None:
            self._consumer.wake()

    async def _run(self, delivery: Delivery) -> None:
        def begin(model: ChatModel, job: Job, outbox: Outbox) -> TurnCall:
            turn = Turn(self._bus, self._conversations, model, self._limits, job, outbox, delivery.traceparent)
            return TurnCall(turn, outbox, self._tasks)

        async def take_place() -> Place:
            return TurnPlace(self._model, begin)

        await self._runner.run(delivery, self, take_place)

    def stats(self) -> dict[str, Any]:
        return {
            "model": self._model.name if self._model else "",
            "turns": len(self._turns),
            "limit": self._limits.turns,
        }

    async def drain(self, budget_s: float) -> None:
        """Take no more, let what runs end within the budget; another worker goes on with the rest."""
        if self._consumer is not None:
            self._consumer.stop_asking()
        if self._turns:
            _, late = await asyncio.wait(set(self._turns), timeout=budget_s)
            for turn in late:
                turn.cancel()
            if late:
                await asyncio.wait(late)


@asynccontextmanager
async def serve_chat(
    bus: Bus,
    worker: str,
    runner: Runner,
    heartbeat: Heartbeat,
    conversations: Conversations,
    model: ChatModel | None,
    limits: ChatLimits,
) -> AsyncIterator[ChatServer]:
    """Serve turns while the context is open. Call `drain()` before leaving."""
    metrics.create_worker_labels(CHAT)
    if model is not None:
        metrics.create_model_labels(model.name)
    await patiently("setting up its queue", lambda: bus.ensure_server(CHAT, CLUSTER_TURNS))
    async with asyncio.TaskGroup() as tasks:
        server = ChatServer(bus, worker, runner, heartbeat, conversations, model, limits, tasks)
        async with bus.consume_jobs(CHAT, server.room) as consumer:
            taking = tasks.create_task(server.take_turns(consumer))
            try:
                yield server
            finally:
                taking.cancel()
