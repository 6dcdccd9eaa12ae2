"""What tests on a real bus are made of: a connection, messages with every field set, and a store that pauses."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

import common.nats_connection
import common.publisher
from common.bus import Bus, connect
from common.schema import Event, EventType, Job, now_ms
from common.settings import BusSettings
from common.subjects import new_job_id
from tests.leftovers import child_processes
from tests.nats_server import NatsServer

DEADLINE_S = 20.0
SERVER = "srv"
SESSION = "s1"


@asynccontextmanager
async def open_bus(server: NatsServer, **settings: Any) -> AsyncIterator[Bus]:
    async with connect(BusSettings(nats_url=server.url, **settings), "test") as bus:
        yield bus


def make_job(session: str = SESSION, server: str = SERVER, **fields: Any) -> Job:
    job = Job(
        id=new_job_id(),
        session=session,
        tenant="test",
        server=server,
        tool="echo",
        arguments={},
        created_ms=now_ms(),
        start_by_ms=now_ms() + 60_000,
        timeout_ms=60_000,
    )
    return job.model_copy(update=fields)


def make_event(
    job: str = "j1", type_: EventType = "progress", session: str = SESSION, attempt: int = 1, **data: Any
) -> Event:
    return Event(job=job, session=session, attempt=attempt, type=type_, time_ms=now_ms(), data=data)


async def store_events(bus: Bus, count: int, job: str = "j1", session: str = SESSION, after: int = 0) -> list[int]:
    """`count` events of one job behind number `after`; their numbers."""
    numbers = [after]
    for number in range(count):
        event = make_event(job, session=session, progress=number)
        numbers.append(await bus.publish_event(event, expected=numbers[-1]))
    return numbers[1:]


async def flushed(bus: Bus) -> None:
    """Returns when the server has all that was sent before: nats-py writes a PING ahead of what it has buffered,
    so that only the second one comes behind."""
    for _ in range(2):
        await bus.client.flush()


async def until(holds: Callable[[], bool | Awaitable[bool]]) -> None:
    """Returns when `holds()` is true. For what no event tells: the state of the store, or of a library."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            found = holds()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.005)


async def until_depth(bus: Bus, waiting: int, running: int) -> None:
    async def reached() -> bool:
        return await bus.queue_depth(SERVER) == (waiting, running)

    await until(reached)


def be_impatient(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Connections that are opened after this give up so soon on a store that does not answer."""
    monkeypatch.setattr(common.nats_connection, "REQUEST_TIMEOUT_S", seconds)
    monkeypatch.setattr(common.publisher, "ACK_TIMEOUT_S", seconds)


@contextmanager
def store_paused() -> Iterator[None]:
    """The nats-server of the test takes what is sent to it, and answers nothing until the end."""
    [pid] = [pid for pid, command in child_processes().items() if "nats-server" in command]
    os.kill(pid, signal.SIGSTOP)
    try:
        while {_state(task) for task in Path(f"/proc/{pid}/task").iterdir()} != {"T"}:
            continue  # a thread stops when it next looks for signals
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _state(task: Path) -> str:
    return (task / "stat").read_text().rsplit(")", 1)[1].split()[0]


def counted(name: str, **labels: str) -> float:
    """The value of a metric; 0 if it was never set."""
    return REGISTRY.get_sample_value(name, labels) or 0.0
