"""Workers of which all is real but the containers: bus, deliveries, runner, attempts, journal, proof."""

from __future__ import annotations

import asyncio
from asyncio import Task
from dataclasses import dataclass, field
from functools import partial
from typing import Final, cast

from nats.aio.msg import Msg

from common import subjects
from common.bus import Bus, connect
from common.consumer import Delivery, JobConsumer
from common.conversations.repository import Conversations
from common.settings import BusSettings
from tests.contract.party import Party, until
from tests.contract.tools import HeldExecutor, HeldSource, HintedServer, Ledger, OneEngine, Supply
from tests.unit.common.bus_rig import flushed
from worker.engine import ContainerEngine
from worker.grip import take_hold
from worker.heartbeat import Heartbeat
from worker.output_stream import OutputLimits
from worker.proof import Proof
from worker.recording import Recording
from worker.runner import Runner

ACK_WAIT_S: Final = 30.0
"""Longer than an example takes: the store delivers again when the test says that it is over."""


@dataclass(frozen=True)
class Handed(Delivery):
    """A delivery that remembers how the worker has settled it."""

    verdicts: list[str] = field(default_factory=list)

    async def ack(self) -> None:
        self.verdicts.append("ack")
        await super().ack()

    async def hand_back(self, delay_s: float = 0.0) -> None:
        self.verdicts.append("hand back")
        await super().hand_back(delay_s)


@dataclass(frozen=True)
class Run:
    """A delivery in a worker's hands."""

    delivery: Handed
    source: HeldSource
    task: Task[None]


class Process:
    """One life of a worker, from its start to its crash."""

    def __init__(self, bus: Bus, party: Party, server: str, ledger: Ledger) -> None:
        self.id = subjects.new_worker_id()
        self.alive = True
        self.runs: list[Run] = []
        self.executor = HeldExecutor(ledger, self.id)
        self.runner = Runner(
            bus,
            self.id,
            Heartbeat(ACK_WAIT_S),
            OutputLimits(),
            Recording(bus, Conversations(bus, compress=True)),
        )
        self._bus = bus
        self._ledger = ledger
        self._party = party
        self._served = HintedServer(self.executor, Proof(bus, cast(ContainerEngine, OneEngine(ledger)), self.id))
        self._room = 0
        self._supply = Supply()
        self._newest: Handed | None = None
        self._consumer: JobConsumer | None = None
        party.tasks.create_task(self._take_jobs(server))

    async def _take_jobs(self, server: str) -> None:
        """As `ServedServer.take_jobs()`, with room for one when the test says so."""
        async with self._bus.consume_jobs(server, lambda: self._room) as self._consumer:
            async for delivery in self._consumer:
                self._room = 0
                handed = Handed(**vars(delivery))
                self._newest = handed
                source = HeldSource(self._ledger, self._supply)
                task = self._party.tasks.create_task(
                    self.runner.run(handed, self._served, partial(take_hold, self._served, source))
                )
                self.runs.append(Run(handed, source, task))

    async def take_one(self, supply: Supply) -> Handed:
        """Returns when the store has delivered a job; nothing was done with it yet."""
        await until(lambda: self._consumer is not None)
        assert self._consumer is not None
        self._supply = supply
        self._newest = None
        self._room = 1
        self._consumer.wake()
        await until(lambda: self._newest is not None)
        taken: Handed | None = self._newest
        assert taken is not None
        return taken

    def runs_now(self) -> list[Run]:
        return [run for run in self.runs if not run.task.done()]

    def at_rest(self) -> bool:
        """Every job in hand waits for the test."""
        return all(self._rests(run) for run in self.runs_now())

    def _rests(self, run: Run) -> bool:
        call = self.executor.current(run.delivery.job.id)
        return run.source.at_rest or (call is not None and call.at_rest)


class Worker:
    """A machine on which one worker process runs after the other, over the same connection."""

    def __init__(self, url: str, name: str) -> None:
        self.party = Party()
        self.frozen = False
        self.process: Process
        settings = BusSettings(nats_url=url, ack_wait_s=ACK_WAIT_S)
        self.bus = self.party.do(self.party.resources.enter_async_context(connect(settings, name)))
        self.party.do(self._listen())
        self.party.keep_what_runs()

    async def _listen(self) -> None:
        await self.bus.client.subscribe(subjects.ALL_LIVE_CANCELS, cb=self._on_cancel)
        await self.bus.client.subscribe(subjects.alive("*"), cb=self._on_alive)
        await flushed(self.bus)

    async def _on_cancel(self, msg: Msg) -> None:
        """As `WorkerApp.on_cancel()`."""
        self.process.runner.cancel(msg.subject.split(".")[2])

    async def _on_alive(self, msg: Msg) -> None:
        """As the worker's NATS micro service."""
        if self.process.alive and msg.subject == subjects.alive(self.process.id):
            await msg.respond(b"")

    def start(self, server: str, ledger: Ledger) -> None:
        self.frozen = False
        self.process = Process(self.bus, self.party, server, ledger)

    def crash(self) -> None:
        """Nothing more of its process reaches the store; what its containers do goes on."""
        for run in self.process.runs_now():
            run.source.open()  # a process that is killed waits for nothing
        self.party.cut_off()
        self.hear()
        self.process.alive = False
        self.frozen = False

    def take(self, supply: Supply) -> Handed:
        return self.party.do(self.process.take_one(supply))

    def settle(self) -> None:
        """Go on until only the test can make it go on."""
        self.party.do(self._settle())

    async def _settle(self) -> None:
        await flushed(self.bus)  # what was published for it has arrived
        await until(self.process.at_rest)
        await flushed(self.bus)

    def hear(self) -> None:
        """Get what the store has sent, and send what was to be sent."""
        self.party.do(flushed(self.bus))

    def run_for(self, seconds: float) -> None:
        self.party.do(asyncio.sleep(seconds))

    def close(self) -> None:
        self.party.cut_off()
        self.party.close()
