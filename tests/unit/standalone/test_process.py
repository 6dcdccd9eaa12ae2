"""Child processes: started, watched, stopped, never left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from standalone.errors import ServiceEnded
from standalone.leftovers import processes_of
from standalone.process import run_process

DEADLINE_S = 15.0

READY_THEN_WAIT = "import time; print('ready', flush=True); time.sleep(60)"
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])
print('ready', flush=True)
time.sleep(60)
"""


async def until_logged(log: Path, text: str) -> None:
    """A child tells by its log only; it takes milliseconds."""
    async with asyncio.timeout(DEADLINE_S):
        while text not in log.read_text():  # noqa: ASYNC240
            await asyncio.sleep(0.005)


async def until_gone(pid: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while processes_of([pid]):
            await asyncio.sleep(0.005)


async def test_a_process_runs_while_the_context_is_open(tmp_path: Path) -> None:
    """Leaving ends it with TERM, and its output is in the log."""
    log = tmp_path / "log"
    async with run_process("sleeper", [sys.executable, "-c", READY_THEN_WAIT], log=log, stop_timeout_s=5) as child:
        await until_logged(log, "ready")
        assert child.running
        assert child.pid in processes_of([child.pid])

    assert not child.running
    assert not processes_of([child.pid])


async def test_a_process_that_ignores_term_is_killed_with_its_children(tmp_path: Path) -> None:
    """The whole group goes, after the time it had."""
    log = tmp_path / "log"
    async with run_process("stubborn", [sys.executable, "-c", STUBBORN], log=log, stop_timeout_s=0.1) as child:
        await until_logged(log, "ready")
        assert len(processes_of([child.pid])) == 2

    await until_gone(child.pid)


async def test_a_process_that_ends_by_itself_is_reported_with_its_last_lines(tmp_path: Path) -> None:
    """The watcher says who, how, and what it logged."""
    code = "print('cannot work'); raise SystemExit(3)"
    async with run_process("worker-1", [sys.executable, "-c", code], log=tmp_path / "log", stop_timeout_s=5) as child:
        with pytest.raises(ServiceEnded, match="worker-1 ended with exit code 3") as ended:
            await child.watch()

    assert ended.value.details == "cannot work"


async def test_a_killed_process_is_reported_as_killed(tmp_path: Path) -> None:
    """A signal is not an exit code."""
    log = tmp_path / "log"
    async with run_process("gateway", [sys.executable, "-c", READY_THEN_WAIT], log=log, stop_timeout_s=5) as child:
        os.kill(child.pid, signal.SIGKILL)
        with pytest.raises(ServiceEnded, match="gateway was killed by signal 9"):
            await child.watch()


async def test_a_stopped_process_is_no_surprise_to_its_watcher(tmp_path: Path) -> None:
    """Only an end that nobody asked for is an error."""
    log = tmp_path / "log"
    argv = [sys.executable, "-c", READY_THEN_WAIT]
    async with asyncio.TaskGroup() as group, run_process("calm", argv, log=log, stop_timeout_s=5) as child:
        watching = group.create_task(child.watch())

    assert watching.exception() is None


async def test_a_process_dies_with_its_parent(tmp_path: Path) -> None:
    """Even if the parent is killed and can do nothing about it."""
    log = tmp_path / "log"
    code = f"""
import asyncio, sys
from pathlib import Path
from standalone.process import run_process

async def main():
    argv = [sys.executable, "-c", {READY_THEN_WAIT!r}]
    async with run_process("child", argv, log=Path({str(log)!r}), stop_timeout_s=5) as child:
        print(child.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=PIPE)
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    await until_logged(log, "ready")
    parent.kill()
    await parent.communicate()

    await until_gone(pid)


async def test_ctrl_c_in_the_terminal_does_not_reach_a_service_directly(tmp_path: Path) -> None:
    """It leads a session of its own, so that the order of the end is ours."""
    log = tmp_path / "log"
    async with run_process("own", [sys.executable, "-c", READY_THEN_WAIT], log=log, stop_timeout_s=5) as child:
        assert os.getsid(child.pid) == child.pid
