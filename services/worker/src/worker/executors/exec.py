"""Commands and Python snippets, run beside a container's idle main process."""

from __future__ import annotations

import asyncio
from typing import Any

from common.job_errors import JobError
from common.schema import Job
from worker.container import ToolContainer
from worker.engine import STDOUT, ContainerEngine, Process
from worker.errors import ServerGone
from worker.executors.contract import Offer
from worker.outbox import Outbox

IDLE_COMMAND = ("/bin/sh", "-c", "exec cat >/dev/null")
"""Main process of an exec container: waits on stdin, so that it ends when the worker's attachment does."""
TERM_GRACE_S = 2.0
KILL_GRACE_S = 2.0
_SIGNAL_EXIT = 128
"""A command that died of signal n exits with 128 + n."""
MAX_CODE_BYTES = 100_000
"""One argument of a process may have 128 KiB on Linux."""

TOOLS: list[dict[str, Any]] = [
    {
        "name": "run",
        "title": "Run a command",
        "description": "Run a shell command, or a program with its arguments; output streams as it is produced.",
        "inputSchema": {
            "type": "object",
            "properties": {
                "command": {
                    "description": "A line for /bin/sh, or a program and its arguments.",
                    "anyOf": [
                        {"type": "string", "minLength": 1, "maxLength": MAX_CODE_BYTES},
                        {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 1000},
                    ],
                }
            },
            "required": ["command"],
            "additionalProperties": False,
        },
    },
    {
        "name": "python",
        "title": "Run a Python snippet",
        "description": "Run Python code with the container's python3; output streams as it is produced.",
        "inputSchema": {
            "type": "object",
            "properties": {"code": {"type": "string", "minLength": 1, "maxLength": MAX_CODE_BYTES}},
            "required": ["code"],
            "additionalProperties": False,
        },
    },
]


def argv(job: Job) -> list[str]:
    """The program and arguments of a job. The gateway has checked the arguments against TOOLS."""
    if job.tool == "python":
        return ["python3", "-u", "-c", job.arguments["code"]]
    command = job.arguments["command"]
    return ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)


class ExecCall:
    def __init__(self, engine: ContainerEngine, container: str, job: str, process: Process, outbox: Outbox) -> None:
        self._engine = engine
        self._container = container
        self._job = job
        self._process = process
        self._outbox = outbox
        self._signalled = False
        self.answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.answer.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def follow(self) -> None:
        """Stream the output; resolves `answer` at the end of the command."""
        try:
            result = await self._follow()
        except JobError as exc:
            if not self.answer.done():
                self.answer.set_exception(exc)
        else:
            if not self.answer.done():
                self.answer.set_result(result)
        finally:
            await self._process.output.close()

    async def _follow(self) -> dict[str, Any]:
        while (frame := await self._process.output.read()) is not None:
            await self._outbox.output("stdout" if frame.stream == STDOUT else "stderr", frame.data)
        await self._outbox.end_output()
        code = await self._process.exit_code()
        if code is None:
            raise ServerGone("the command's streams ended while it still ran; the engine may have been restarted")
        if self._signalled and code > _SIGNAL_EXIT:
            raise ServerGone("the command was stopped", exit_code=code)
        stdout, stderr = self._outbox.written("stdout"), self._outbox.written("stderr")
        return {
            "content": [{"type": "text", "text": stdout.text or stderr.text}],
            "structuredContent": {
                "exitCode": code,
                "stdout": stdout.text,
                "stderr": stderr.text,
                "truncated": not (stdout.whole and stderr.whole),
            },
            "isError": code != 0,
        }

    async def stop(self) -> bool:
        """TERM, then KILL, to the command's process group; proven by the engine's view of the command."""
        self._signalled = True
        for signal, grace_s in (("TERM", TERM_GRACE_S), ("KILL", KILL_GRACE_S)):
            try:
                killer = await self._engine.execute(
                    self._container, ["/bin/sh", "-c", f'kill -{signal} -- "-$(cat {_pid_file(self._job)})"']
                )
                await killer.output.close()
            except JobError:
                return False
            await asyncio.wait({self.answer}, timeout=grace_s)
            if self.answer.done():
                return await self._ended()
        return False

    async def _ended(self) -> bool:
        try:
            return await self._process.exit_code() is not None
        except JobError:
            return False


class ExecExecutor:
    def __init__(self, engine: ContainerEngine, tasks: asyncio.TaskGroup) -> None:
        self._engine = engine
        self._tasks = tasks

    async def prepare(self, container: ToolContainer) -> None:
        """Nothing to agree on: the container is ready when it runs."""

    async def offer(self, container: ToolContainer) -> Offer:
        return Offer("none", {"name": "exec"}, TOOLS)

    async def begin(self, container: ToolContainer, job: Job, outbox: Outbox) -> ExecCall:
        # The engine makes the command the leader of its own process group; its number is noted for stop().
        note = f'echo $$ >{_pid_file(job.id)}; exec "$@"'
        process = await self._engine.execute(container.id, ["/bin/sh", "-c", note, "sh", *argv(job)])
        call = ExecCall(self._engine, container.id, job.id, process, outbox)
        self._tasks.create_task(call.follow())
        return call

    async def probe(self, container: ToolContainer) -> None:
        state = await self._engine.inspect(container.id)
        if state is None or not state.running:
            raise ServerGone("the container has ended")


def _pid_file(job: str) -> str:
    return f"/tmp/.job-{job}"
