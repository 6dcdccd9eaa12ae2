"""Fixtures only; what they are made of stands in modules of its own beside this one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

import pytest

from tests.leftovers import child_processes
from tests.nats_server import NatsServer, run_nats_server

ROOT = Path(__file__).parent.parent
LOG_SHOWN_BYTES = 8192


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that fails shows how the logs end that its processes wrote into its folder."""
    report = yield
    folder = getattr(item, "funcargs", {}).get("tmp_path")
    if report.failed and folder is not None:
        for log in sorted(folder.rglob("*.log")):
            end = log.read_bytes()[-LOG_SHOWN_BYTES:].decode(errors="replace")
            report.sections.append((f"{report.when}: end of {log.relative_to(folder)}", end))
    return report


@pytest.fixture
async def nats_server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """A nats-server of the test's own. No service may have tried there what its user is not allowed."""
    folder = tmp_path / "nats"
    folder.mkdir()
    async with run_nats_server(folder) as server:
        yield server
    assert server.violations() == []


@pytest.fixture(scope="session")
def docker_host() -> str:
    """The engine that `make test` has started, or the one that a developer has up."""
    if given := os.environ.get("DOCKER_HOST"):
        return given
    found = subprocess.run([ROOT / "scripts/engine.sh", "host"], capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.fail("no Docker Engine answers: run `make engine-up images-tests`, or `make test` as a whole")
    return found.stdout.strip()


@pytest.fixture(scope="session", autouse=True)
def no_process_left() -> Iterator[None]:
    """The suite leaves no process behind that it started."""
    before = child_processes()
    yield
    left = {pid: line for pid, line in child_processes().items() if pid not in before}
    assert not left, f"processes left behind: {left}"
