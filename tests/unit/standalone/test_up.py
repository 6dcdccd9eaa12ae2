"""`python -m standalone up` as a user runs it; with an empty catalog, so that no container is needed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from client import connect
from standalone.leftovers import processes_of
from tests.leftovers import child_processes

DEADLINE_S = 40.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "servers.yaml").write_text("servers: {}\n")
    return tmp_path


@asynccontextmanager
async def started(folder: Path, **env: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "standalone",
        "up",
        stdout=PIPE,
        stderr=PIPE,
        env={
            **os.environ,
            "PORT": "0",
            "STATE_DIR": str(folder / "state"),
            "SERVERS_FILE": str(folder / "servers.yaml"),
            "DOCKER_HOST": "unix:///nowhere.sock",
            **env,
        },
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def said(process: Process, label: str) -> str:
    """The value that `up` prints behind a label, once everything is ready."""
    assert process.stdout is not None
    async for line in process.stdout:
        if line.decode().startswith(label):
            return line.decode().removeprefix(label).strip()
    assert process.stderr is not None
    raise AssertionError(f"it ended: {(await process.stderr.read()).decode()}")


def services_of(process: Process) -> dict[str, int]:
    """The pids of the services, by the last word of their command lines."""
    found = {}
    for pid, command in child_processes().items():
        if pid != process.pid and os.getsid(pid) == pid:
            found["nats-server" if "nats-server" in command else command.split()[-1]] = pid
    return found


@pytest.mark.parametrize("mode", ["true", "false"])
async def test_up_serves_until_it_is_told_to_stop(folder: Path, mode: str) -> None:
    """With services as processes and in one process alike; SIGTERM ends it with 0 and leaves nothing."""
    async with started(folder, ENABLE_WORKER_MODE=mode) as process:
        url = await said(process, "gateway")
        async with connect(url) as session:
            workers = (await session.status())["workers"]
        services = services_of(process)
        process.send_signal(signal.SIGTERM)
        _, errors = await process.communicate()

    assert len(workers) == 1
    assert set(services) == ({"nats-server", "gateway", "worker"} if mode == "true" else {"nats-server"})
    assert (process.returncode, errors) == (0, b"stopped\n")
    assert not processes_of(services.values())


@pytest.mark.parametrize("level", ["process", "power"])
async def test_up_keeps_to_the_level_that_it_is_told(folder: Path, level: str) -> None:
    """Both services ask its one server and have nothing to warn of, whatever the environment says of a cluster."""
    elsewhere = {"NATS_REPLICAS": "3", "NATS_MONITOR_URL": "http://127.0.0.1:1", "LOG_LEVEL": "warning"}
    async with started(folder, DURABILITY=level, **elsewhere) as process:
        async with connect(await said(process, "gateway")) as session:
            status = await session.status()
        process.send_signal(signal.SIGTERM)
        await process.communicate()

    config = (folder / "state" / "nats" / "nats.conf").read_text()
    assert ("sync_interval: always" in config) is (level == "power")
    assert status["gateway"]["durability"] == {"level": level, "weaknesses": []}
    for service in ("gateway", "worker-1"):
        assert "weaker" not in (folder / "state" / f"{service}.log").read_text()


async def test_up_starts_as_many_workers_as_it_is_told(folder: Path) -> None:
    """WORKERS=2."""
    async with started(folder, WORKERS="2") as process:
        async with connect(await said(process, "gateway")) as session:
            assert len((await session.status())["workers"]) == 2
        process.send_signal(signal.SIGINT)
        await process.communicate()

    assert process.returncode == 0


async def test_a_service_that_dies_stops_everything_and_is_named(folder: Path) -> None:
    """With its last log lines, and an exit code that is not 0."""
    async with started(folder) as process:
        await said(process, "Ctrl-C")
        services = services_of(process)
        os.kill(services["gateway"], signal.SIGKILL)
        _, errors = await process.communicate()

    assert process.returncode == 1
    assert errors.decode().startswith("standalone: gateway was killed by signal 9\n    {")
    assert not processes_of(services.values())


async def test_services_die_with_a_killed_standalone(folder: Path) -> None:
    """SIGKILL leaves nothing, and the same folder can be used again at once."""
    async with started(folder) as process:
        await said(process, "Ctrl-C")
        services = services_of(process)
        process.kill()
        await process.communicate()
        while processes_of(services.values()):
            await asyncio.sleep(0.01)

    async with started(folder) as process:
        await said(process, "Ctrl-C")


async def test_a_stop_during_the_start_is_heeded(folder: Path) -> None:
    """Whatever has started by then is stopped."""
    async with started(folder) as process:
        log = folder / "state" / "gateway.log"
        while not log.exists():
            await asyncio.sleep(0.005)
        process.send_signal(signal.SIGINT)
        await process.communicate()

    assert process.returncode == 0


async def test_a_second_instance_on_the_same_folder_is_refused(folder: Path) -> None:
    """One sentence, no traceback."""
    async with started(folder) as first:
        await said(first, "Ctrl-C")
        async with started(folder) as second:
            _, errors = await second.communicate()

    assert second.returncode == 1
    assert "is in use by another instance; stop that one, or set STATE_DIR" in errors.decode()
    assert "Traceback" not in errors.decode()


async def test_a_taken_port_is_named(folder: Path) -> None:
    """With the setting that changes it."""
    async with started(folder) as first:
        port = (await said(first, "gateway")).rsplit(":", 1)[1]
        async with started(folder, PORT=port, STATE_DIR=str(folder / "other")) as second:
            _, errors = await second.communicate()

    assert second.returncode == 1
    assert f"the gateway cannot listen on 127.0.0.1:{port}" in errors.decode()


async def test_faults_of_the_catalog_are_listed(folder: Path) -> None:
    """Before anything is started."""
    (folder / "servers.yaml").write_text("servers:\n  time: {imag: x}\n")
    async with started(folder) as process:
        _, errors = await process.communicate()

    assert process.returncode == 1
    assert "servers.yaml:2: time.image: Field required" in errors.decode()
    assert "Traceback" not in errors.decode()


async def test_faults_of_the_settings_are_listed_together(folder: Path) -> None:
    """Exit code 2."""
    async with started(folder, PORT="none", WORKERS="0") as process:
        _, errors = await process.communicate()

    assert process.returncode == 2
    assert "PORT" in errors.decode()
    assert "WORKERS" in errors.decode()


def test_the_catalog_at_the_root_can_be_read() -> None:
    """servers.yaml is an example and a default; it names the servers that the demo calls."""
    from common.catalog import read
    from standalone.calls import CALLS

    catalog = read(Path(__file__).parents[3] / "servers.yaml")

    assert {call.server for call in CALLS} <= catalog.keys()
