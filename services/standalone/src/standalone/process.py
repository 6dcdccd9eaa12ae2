"""A service as a child process: started, watched, stopped, and gone whatever happens to this process."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, STDOUT
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from standalone.errors import ServiceEnded

KILL_WAIT_S: Final = 5.0
TAIL_LINES: Final = 15
TAIL_BYTES: Final = 16 * 1024

_PR_SET_PDEATHSIG: Final = 1
_libc: Final = ctypes.CDLL(None) if sys.platform == "linux" else None


class Child:
    """Made by `run_process`."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.log = log
        self._process = process
        self._stopping = False

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    def log_tail(self) -> str:
        """The last lines of the log."""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - TAIL_BYTES))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-TAIL_LINES:])

    async def wait(self) -> int:
        """Returns the exit code when the process has ended, whoever ended it; minus the signal that killed it."""
        return await self._process.wait()

    async def watch(self) -> None:
        """Returns when the process was stopped.

        Raises:
            ServiceEnded: if it ends by itself.
        """
        code = await self._process.wait()
        if not self._stopping:
            raise ServiceEnded(self.name, code, self.log_tail())

    async def stop(self, timeout_s: float) -> None:
        """TERM, then KILL to its whole process group after `timeout_s`. Returns when the process is gone."""
        self._stopping = True
        if self.running:
            self._process.terminate()
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._process.wait()
        # In any case: it may have left processes of its own.
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        async with asyncio.timeout(KILL_WAIT_S):
            await self._process.wait()


@asynccontextmanager
async def run_process(
    name: str,
    argv: Sequence[str | Path],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    stop_timeout_s: float,
    pass_fds: Collection[int] = (),
) -> AsyncIterator[Child]:
    """Run a program while the context is open; its output goes to `log`, which starts anew.

    It has a session of its own, so that Ctrl-C reaches it only through us, and the kernel kills it when this
    process is killed.
    """
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=DEVNULL,
            stdout=output,
            stderr=STDOUT,
            env=env,
            pass_fds=pass_fds,
            start_new_session=True,
            preexec_fn=_die_with(os.getpid()),
        )
    child = Child(name, process, log)
    try:
        yield child
    finally:
        await child.stop(stop_timeout_s)


def _die_with(parent: int) -> Callable[[], None]:
    """What the new process does first; systems other than Linux have nothing for it."""

    def die_with_parent() -> None:
        if _libc is not None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)  # the parent died before the call above

    return die_with_parent
