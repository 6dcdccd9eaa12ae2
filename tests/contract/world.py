"""A store, a gateway and two workers, and the wall clock that they share; sessions come and go on it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

import worker.liveness
import worker.runner
from common import subjects
from tests.contract.clock import Clock
from tests.contract.gateways import Gateway
from tests.contract.model import ContractBroken, Model, ModelJob
from tests.contract.party import DEADLINE_S
from tests.contract.tools import IMPATIENT, HeldCall, HeldSource, Ledger, Supply
from tests.contract.workers import ACK_WAIT_S, Handed, Process, Worker

SLICE_S: Final = 0.001
"""How long one of several workers runs before the next one does."""
DRAIN_ROUNDS: Final = 40


class World:
    """Made by `world()`, for one test."""

    def __init__(self, clock: Clock, gateway: Gateway, workers: list[Worker]) -> None:
        self.clock = clock
        self.gateway = gateway
        self.workers = workers
        self.faults: list[str] = []
        """What was found to break the contract."""

    def steps(self) -> int:
        """How often anybody has run: nothing changes in between."""
        return self.gateway.party.steps + sum(worker_.party.steps for worker_ in self.workers)


@contextmanager
def world(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[World]:
    clock = Clock()
    clock.install(patch)
    patch.setattr(worker.liveness, "ANSWER_WITHIN_S", 0.05)  # a worker that does not answer in it counts as lost
    patch.setattr(worker.runner, "HAND_BACK_DELAY_S", 0.0)
    with ExitStack() as parties:
        gateway = Gateway(folder)
        parties.callback(gateway.close)
        workers = []
        for name in ("worker-a", "worker-b"):
            workers.append(Worker(gateway.url, name))
            parties.callback(workers[-1].close)
        yield World(clock, gateway, workers)


class Example:
    """One session on one server, from its first call to the end of its last job. `look()` after every step."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.gateway = world.gateway
        self.workers = world.workers
        self.session = subjects.new_session_id()
        self.server = f"s-{self.session[:12]}"
        self.ledger = Ledger()
        self.model = Model(self.ledger, world.clock)
        self._given_back: set[str] = set()
        """Jobs that the store may deliver again, if they are still in its queue."""
        self._noticed: set[int] = set()
        self._steps_seen = 0
        self.broken = False
        self._holders: dict[str, tuple[Worker, Process, Handed]] = {}
        """Who got a job last."""
        self._processes: list[tuple[Worker, Process]] = []
        self.gateway.serve_only(self.server)
        for worker_ in self.workers:
            self._start(worker_)

    def _start(self, worker_: Worker) -> None:
        worker_.start(self.server, self.ledger)
        self._processes.append((worker_, worker_.process))

    # --- the gateway's part ---------------------------------------------------------------------------

    def call(self, tool: str, key: str | None = None) -> ModelJob:
        return self.model.accept(self.gateway.call(self.session, self.server, tool, key), tool, key)

    def call_twice_at_once(self, tool: str, key: str) -> None:
        for job in self.gateway.call_twice_at_once(self.session, self.server, tool, key):
            self.model.accept(job, tool, key)

    def cancel(self, job: ModelJob) -> None:
        job.cancel_asked = True
        self.gateway.cancel(self.session, job.id)

    def queue(self) -> list[str]:
        """Jobs that wait or run, as the store has them."""
        return self.gateway.in_queue(self.server, self.session)

    # --- what could happen next -----------------------------------------------------------------------

    def live(self) -> list[Worker]:
        return [worker_ for worker_ in self.workers if not worker_.frozen]

    def frozen(self) -> list[Worker]:
        return [worker_ for worker_ in self.workers if worker_.frozen]

    def busy(self) -> list[Worker]:
        return [worker_ for worker_ in self.workers if worker_.process.runs_now()]

    def busy_and_live(self) -> list[Worker]:
        return [worker_ for worker_ in self.busy() if not worker_.frozen]

    def impatient(self) -> list[str]:
        """Jobs whose time to wait is about to be over."""
        return [job for job in self.queue() if self.model.jobs[job].tool in IMPATIENT]

    # --- the workers' part ----------------------------------------------------------------------------

    def deliverable(self) -> list[str]:
        """Jobs that the store gives to whoever asks."""
        self.look()
        return [job for job in self.queue() if job not in self._holders or job in self._given_back]

    def deliver(self, worker_: Worker, supply: Supply) -> None:
        handed = worker_.take(supply)
        job = self.model.jobs[handed.job.id]
        job.unsupplied |= supply.comes == "broken"
        if supply.dead > 1:
            job.faults.add("dead containers")
        self._holders[job.id] = worker_, worker_.process, handed
        self._given_back.discard(job.id)

    def crash(self, worker_: Worker) -> None:
        """The process is killed, and started again."""
        for run in worker_.process.runs_now():
            self.model.jobs[run.delivery.job.id].faults.add("crash")
        worker_.crash()
        self._start(worker_)

    def lapsable(self) -> list[str]:
        """Jobs for which no worker gives a sign of life any more."""
        return [
            job
            for job in self.queue()
            if job in self._holders and job not in self._given_back and not self._is_in_hand(job)
        ]

    def _is_in_hand(self, job: str) -> bool:
        worker_, process, _ = self._holders[job]
        return process.alive and not worker_.frozen and process.runner.in_hand(job)

    def let_lapse(self, job: str) -> None:
        """ack_wait is over for a job: the store delivers it again."""
        worker_, _, handed = self._holders[job]
        if worker_.frozen:
            self.model.jobs[job].faults.add("silence")
        self.world.clock.let_pass(ACK_WAIT_S + 1)
        self.gateway.let_lapse(handed)
        self._given_back.add(job)

    def let_all_lapse(self, worker_: Worker) -> None:
        for job in self.lapsable():
            if self._holders[job][0] is worker_:
                self.let_lapse(job)

    def settle_together(self) -> None:
        """All workers that can go on at the same time, until only the test can make them go on."""
        live = self.live()
        for worker_ in live:
            worker_.hear()
        late = time.monotonic() + DEADLINE_S
        while not all(worker_.process.at_rest() for worker_ in live):
            if time.monotonic() > late:
                raise TimeoutError("workers do not come to rest")
            for worker_ in live:
                worker_.run_for(SLICE_S)
        for worker_ in live:
            worker_.hear()

    def tell(self, call: HeldCall) -> None:
        """A tool reports; its worker reads that when it next runs."""
        for worker_, process in self._processes:
            if process.id == call.worker and process.alive:
                worker_.party.tasks.create_task(call.tell())

    def lose_server(self, call: HeldCall) -> None:
        """The process of the tool's server ends."""
        self.model.jobs[call.job].faults.add("lost server")
        call.lose_server()

    def held_sources(self) -> list[HeldSource]:
        """Those that wait for the test."""
        return [run.source for worker_ in self.workers for run in worker_.process.runs_now() if run.source.at_rest]

    # --- after every step -----------------------------------------------------------------------------

    def look(self) -> None:
        """
        Raises:
            ContractBroken: if anything was stored or done that the contract rules out.
        """
        if self._steps_seen == (steps := self.world.steps()):
            return
        self._steps_seen = steps
        with self._noted():
            self._look()

    @contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except ContractBroken as fault:
            self.broken = True
            self.world.faults.append(str(fault))
            raise

    def _look(self) -> None:
        for stored in self.gateway.events(self.session, self.model.last_seq):
            self.model.see(stored)
        self.model.judge_executions()
        for worker_, process in self._processes:
            for run in process.runs:
                handed, job = run.delivery, self.model.jobs[run.delivery.job.id]
                if "ack" in handed.verdicts:
                    job.judge_acknowledged()
                if "hand back" in handed.verdicts and id(handed) not in self._noticed:
                    self._notice_hand_back(worker_, process, handed)

    def _notice_hand_back(self, worker_: Worker, process: Process, handed: Handed) -> None:
        """It may not have left the worker yet; one that is frozen says nothing, one that has crashed may not have."""
        if process.alive and not worker_.frozen:
            worker_.hear()
            self._noticed.add(id(handed))
            self._given_back.add(handed.job.id)

    # --- the end --------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Let everything end that is open.

        Raises:
            ContractBroken: if a job does not end, or not as it had to.
        """
        self._end_everything()
        with self._noted():
            self.model.judge_the_end()
            if left := self.queue():
                raise ContractBroken(f"jobs are left in the queue: {left}")

    def _end_everything(self) -> None:
        for worker_ in self.workers:
            worker_.frozen = False
        for _ in range(DRAIN_ROUNDS):
            for call in self.ledger.calls:
                if call.awaits_confirmation:
                    call.confirm(True)
                if call.awaits_answer:
                    call.say("succeeded")
            for _, process in self._processes:
                for run in process.runs:
                    run.source.open()
            self.settle_together()
            self.look()
            for job in self.lapsable():
                self.let_lapse(job)
            if not self.queue() and not self.busy():
                break
            for number, _ in enumerate(self.deliverable()):
                self.deliver(self.workers[number % 2], Supply())

    def abandon(self) -> None:
        """Leave nothing running."""
        for worker_ in self.workers:
            worker_.crash()
