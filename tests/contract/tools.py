"""Tools, containers and an engine that are the test's: what happens in them, and when, is its choice."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from typing import Any, Final, Literal

from common.catalog import ServerSpec
from common.schema import Event, Job, Outcome
from tests.unit.worker.duplexes import MemoryDuplex
from worker.container import ToolContainer
from worker.errors import ContainerStartFailed, PoolExhausted, ServerGone
from worker.executors.contract import Offer
from worker.mcp_connection import McpConnection
from worker.outbox import Outbox
from worker.pool import Acquired
from worker.proof import Proof

QUEUE_S: Final = 86_000.0
SOON_S: Final = 10.0
"""Queue deadline of the impatient tools."""

TOOLS: Final[dict[str, dict[str, Any]]] = {
    "look": {"readOnlyHint": True},
    "put": {"idempotentHint": True},
    "send": {},
    "put_soon": {"idempotentHint": True},
    "send_soon": {},
}
IMPATIENT: Final = frozenset({"put_soon", "send_soon"})
SPEC: Final = ServerSpec.model_validate(
    {
        "image": "none",
        "timeouts": {"queue_s": QUEUE_S, "job_ms": 86_000_000},
        "tools": {tool: {"queue_s": SOON_S} for tool in sorted(IMPATIENT)},
    }
)
ENGINE: Final = "engine-1"


def read_only(tool: str) -> bool:
    return SPEC.read_only(tool, TOOLS[tool])


def repeatable(tool: str) -> bool:
    return read_only(tool) or SPEC.idempotent(tool, TOOLS[tool])


class HeldCall:
    """A call that has reached its tool, and waits for the test to say how it goes on."""

    def __init__(self, number: int, job: Job, worker: str, container: str, outbox: Outbox) -> None:
        self.number = number
        self.job = job.id
        self.tool = job.tool
        self.worker = worker
        self.container = container
        self.outbox = outbox
        self.answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.runs = True
        """The tool is at work on it, whoever still wants to know."""
        self.said: Outcome | None = None
        """The answer, if it gave one."""
        self._stopped: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.stop_asked = False

    async def stop(self) -> bool:
        self.stop_asked = True
        return await self._stopped

    @property
    def awaits_answer(self) -> bool:
        return self.runs and not self.answer.done()

    @property
    def awaits_confirmation(self) -> bool:
        return self.stop_asked and not self._stopped.done()

    @property
    def at_rest(self) -> bool:
        """Its worker has nothing more to do for it now."""
        if self.stop_asked:
            return self.awaits_confirmation
        return self.outbox.started_settled.is_set() and not self.answer.done()

    async def tell(self) -> None:
        """The tool reports."""
        self.outbox.progress({"progress": self.number})

    def say(self, outcome: Literal["succeeded", "failed"]) -> None:
        """The tool answers."""
        self.said = outcome
        self.runs = False
        content = [{"type": "text", "text": str(self.number)}]
        self.answer.set_result({"content": content, "isError": outcome == "failed"})

    def confirm(self, stopped: bool) -> None:
        """The server answers a stop: it has ended the call, or does not say."""
        if stopped:
            self.runs = False
        self._stopped.set_result(stopped)

    def lose_server(self) -> None:
        """The server's process ends."""
        self.runs = False
        if not self.answer.done():
            self.answer.set_exception(ServerGone("the server ended during the call"))
            self.answer.exception()  # looked at: its worker may be gone
        if self.awaits_confirmation:
            self._stopped.set_result(True)


class Ledger:
    """What the tools have really done, whoever asked them to: kept outside of the system, as sent mails are."""

    def __init__(self) -> None:
        self.calls: list[HeldCall] = []

    def of(self, job: str) -> list[HeldCall]:
        return [call for call in self.calls if call.job == job]

    def running(self) -> list[HeldCall]:
        return [call for call in self.calls if call.awaits_answer]

    def stopping(self) -> list[HeldCall]:
        return [call for call in self.calls if call.awaits_confirmation]

    def end_container(self, container: str) -> None:
        for call in self.calls:
            if call.container == container:
                call.lose_server()


class HeldExecutor:
    """Hands calls over to the test. Of one worker."""

    def __init__(self, ledger: Ledger, worker: str) -> None:
        self._ledger = ledger
        self._worker = worker
        self._current: dict[str, HeldCall] = {}

    def current(self, job: str) -> HeldCall | None:
        """The newest call of a job."""
        return self._current.get(job)

    async def begin(self, container: ToolContainer, job: Job, outbox: Outbox) -> HeldCall:
        if container.retired:
            raise ServerGone("the server ended before the call reached it")
        call = HeldCall(len(self._ledger.calls) + 1, job, self._worker, container.id, outbox)
        self._ledger.calls.append(call)
        self._current[job.id] = call
        return call

    async def prepare(self, container: ToolContainer) -> None:
        raise AssertionError("no container is booted here")

    async def offer(self, container: ToolContainer) -> Offer:
        raise AssertionError("the test has told what is on offer")

    async def probe(self, container: ToolContainer) -> None:
        raise AssertionError("no container is idle here")


class HintedServer:
    """What an attempt needs to know of its server: the tools above, and who runs them."""

    def __init__(self, executor: HeldExecutor, proof: Proof) -> None:
        self._proof = proof
        self.spec = SPEC
        self.executor = executor
        self.image_digest = "sha256:0"
        self.engine_id = ENGINE

    def executor_of(self, job: Job) -> HeldExecutor:
        return self.executor

    def repeatable(self, job: Job) -> bool:
        return repeatable(job.tool)

    def read_only(self, job: Job) -> bool:
        return read_only(job.tool)

    async def stopped(self, job: Job, started: Event) -> bool:
        return await self._proof.is_dead(started)


@dataclass(frozen=True)
class Supply:
    """How a job fares with containers on one worker."""

    comes: Literal["at once", "later", "never", "broken"] = "at once"
    """`later`: when the test lets it. `never`: all are in use. `broken`: none can be started."""
    dead: int = 0
    """So many of the containers have ended when they are picked."""
    held_at_release: bool = False
    """Letting go of the container takes until the test says so: the job has ended, and is not acknowledged."""


class HeldSource:
    """Containers for one delivery of a job."""

    def __init__(self, ledger: Ledger, supply: Supply) -> None:
        self._ledger = ledger
        self._supply = supply
        self._dead = supply.dead
        self._came = asyncio.Event()
        self._released = asyncio.Event()
        if supply.comes != "later":
            self._came.set()
        if not supply.held_at_release:
            self._released.set()
        self.waits_for: asyncio.Event | None = None
        """What the test can set for the job to go on."""

    async def acquire(self) -> Acquired:
        await self._wait(self._came)
        if self._supply.comes == "never":
            raise PoolExhausted("all containers are in use")
        if self._supply.comes == "broken":
            raise ContainerStartFailed("there is no such image")
        duplex = MemoryDuplex()
        container = ToolContainer(secrets.token_hex(6), duplex, McpConnection(duplex))
        if self._dead > 0:
            self._dead -= 1
            container.retired = True
        return Acquired(container, warm=True)

    async def release(self, container: ToolContainer) -> None:
        if container.calls and not container.retired:
            await self._wait(self._released)

    async def end(self, container: ToolContainer) -> None:
        self._ledger.end_container(container.id)

    async def post_mortem(self, container: ToolContainer, gone: ServerGone) -> ServerGone:
        return gone

    async def _wait(self, event: asyncio.Event) -> None:
        self.waits_for = event
        await event.wait()
        self.waits_for = None

    def go_on(self) -> None:
        """What the job waits for happens."""
        if self.waits_for is not None:
            self.waits_for.set()

    def open(self) -> None:
        """Hold nothing any more."""
        self._came.set()
        self._released.set()

    @property
    def at_rest(self) -> bool:
        return self.waits_for is not None and not self.waits_for.is_set()


class OneEngine:
    """The engine of all workers, as far as it is asked to prove that a call has ended."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def identity(self) -> str:
        return ENGINE

    async def remove(self, container: str) -> None:
        self._ledger.end_container(container)
