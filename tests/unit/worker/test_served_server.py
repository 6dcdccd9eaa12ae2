"""One server on a worker: which jobs it takes, on a real store. No container is made here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from common.bus import Bus
from common.catalog import ServerSpec
from common.conversations.repository import Conversations
from common.subjects import new_job_id
from tests.nats_server import NatsServer
from tests.unit.common.bus_rig import DEADLINE_S, SERVER, counted, make_job, open_bus, until
from worker.boot_gate import BootGate
from worker.docker_engine import open_docker_engine
from worker.errors import ContainerStartFailed
from worker.heartbeat import Heartbeat
from worker.output_stream import OutputLimits
from worker.proof import Proof
from worker.recording import Recording
from worker.runner import Runner
from worker.served_server import ServedServer, Worker, _environment, serve
from worker.slots import Slots


@pytest.fixture
async def worker(bus: Bus) -> AsyncIterator[Worker]:
    """A worker whose engine is not there."""
    async with open_docker_engine("unix:///nonexistent/docker.sock") as engine:
        heartbeat = Heartbeat(30)
        yield Worker(
            id="w-1",
            bus=bus,
            engine=engine,
            slots=Slots(10),
            runner=Runner(bus, "w-1", heartbeat, OutputLimits(), Recording(bus, Conversations(bus, compress=True))),
            proof=Proof(bus, engine, "w-1"),
            heartbeat=heartbeat,
            boot_gate=BootGate(1),
            output_limits=OutputLimits(),
            labels={},
        )


@pytest.mark.parametrize("scope", ["shared", "session", "call"])
async def test_a_job_that_comes_during_a_drain_goes_back_and_is_not_started(
    worker: Worker, bus: Bus, nats_server: NatsServer, scope: Any
) -> None:
    """It was asked for before; a worker that goes would take its container away in the middle of it."""
    server = f"{SERVER}-{new_job_id()}"  # its metrics are its own
    await bus.ensure_server(server, 100)
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        served = ServedServer(worker, server, ServerSpec(image="none", scope=scope), tasks)
        worker.slots.add_server(server, 10, served.wake)
        async with bus.consume_jobs(server, lambda: 3) as consumer:
            taking = tasks.create_task(served.take_jobs(consumer))
            await until(lambda: consumer.credit == 3)
            await served.drain(0)
            job = make_job(server=server)
            await bus.enqueue_job(job)
            await until(lambda: consumer.outstanding == 0)
            async with open_bus(nats_server) as other, other.consume_jobs(server, lambda: 1) as elsewhere:
                delivery = await anext(aiter(elsewhere))
            taking.cancel()

    assert delivery.job == job
    assert delivery.deliveries > 1
    assert counted("container_boots_total", server=server, result="failed") == 0


@pytest.mark.parametrize("reference", ["env:NO_SUCH_VARIABLE_HERE", "file:/no/such/file"])
async def test_a_secret_that_cannot_be_read_is_told_by_its_reference(worker: Worker, reference: str) -> None:
    """The server is not served with a part of its environment."""
    spec = ServerSpec(image="none", secrets={"TOKEN": reference})
    with pytest.raises(ExceptionGroup) as failed:
        async with serve(worker, SERVER, spec):
            raise AssertionError("it must not be served")
    [exc] = failed.value.exceptions

    assert isinstance(exc, ContainerStartFailed)
    assert exc.message == f"secret TOKEN ({reference}) cannot be read on the worker"


def test_secrets_are_read_on_the_worker_and_join_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file's last line feed is no part of it; the entry itself keeps the references only."""
    monkeypatch.setenv("A_TOKEN", "from the environment")
    file = tmp_path / "token"
    file.write_text("from a file\n")
    secrets = {"ONE": "env:A_TOKEN", "TWO": f"file:{file}"}
    spec = ServerSpec(image="none", env={"PLAIN": "1"}, secrets=secrets)

    assert _environment(spec) == {"PLAIN": "1", "ONE": "from the environment", "TWO": "from a file"}
    assert spec.secrets == secrets
