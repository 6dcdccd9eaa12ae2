"""Both ends of a server's stdio: in memory with doubles named after what they do, and of a real process."""

from __future__ import annotations

import asyncio
import json
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.unit.common.bus_rig import DEADLINE_S
from worker.engine import STDERR, STDOUT, Frame
from worker.errors import ServerGone
from worker.mcp_connection import McpConnection

SERVER_INFO = {"name": "double", "version": "1"}


class MemoryDuplex:
    """A server's stdio without a server: the test says what it writes, and sees what it is sent."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self._output: asyncio.Queue[Frame | None] = asyncio.Queue()
        self._input = asyncio.Condition()

    async def read(self) -> Frame | None:
        frame = await self._output.get()
        if frame is None:
            self._output.put_nowait(None)  # the end stays the end
        return frame

    async def write(self, data: bytes) -> None:
        assert data.endswith(b"\n")
        message = json.loads(data)
        assert data.count(b"\n") == 1
        async with self._input:
            self.sent.append(message)
            self._input.notify_all()
        self.on_message(message)

    async def close(self) -> None:
        self.end()

    def on_message(self, message: dict[str, Any]) -> None:
        """What the server does with a message: nothing."""

    def say(self, data: bytes, stream: int = STDOUT) -> None:
        self._output.put_nowait(Frame(stream, data))

    def answer(self, **message: Any) -> None:
        self.say(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")

    def end(self) -> None:
        self._output.put_nowait(None)

    async def until_sent(self, count: int) -> list[dict[str, Any]]:
        """Returns when so many messages have been written to the server."""
        async with asyncio.timeout(DEADLINE_S), self._input:
            await self._input.wait_for(lambda: len(self.sent) >= count)
        return self.sent

    @property
    def methods(self) -> list[str]:
        return [message["method"] for message in self.sent]


class LegacyServer(MemoryDuplex):
    """Knows `initialize`, and nothing of `server/discover`."""

    def on_message(self, message: dict[str, Any]) -> None:
        if "id" not in message:
            return
        if message["method"] == "initialize":
            self.answer(id=message["id"], result={"protocolVersion": "2025-11-25", "serverInfo": SERVER_INFO})
        else:
            self.answer(id=message["id"], error={"code": -32601, "message": "Method not found"})


class ModernServer(MemoryDuplex):
    """Describes itself when asked, and never wants to be initialized."""

    def on_message(self, message: dict[str, Any]) -> None:
        assert message["method"] == "server/discover"
        self.answer(id=message["id"], result={"_meta": {"io.modelcontextprotocol/serverInfo": SERVER_INFO}})


class AnotherModernVersion(ModernServer):
    """Is of the modern era, but refuses the first question for its version."""

    _asked = False

    def on_message(self, message: dict[str, Any]) -> None:
        if self._asked:
            super().on_message(message)
        else:
            self._asked = True
            self.answer(id=message["id"], error={"code": -32022, "message": "Unsupported protocol version"})


class IgnoresTheProbe(LegacyServer):
    """Says nothing to a method that it does not know."""

    def on_message(self, message: dict[str, Any]) -> None:
        if message["method"] == "initialize":
            super().on_message(message)


class EndsAtOnce(MemoryDuplex):
    """Says why on stderr, prints a banner on stdout, and is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.say(b"Traceback: no module named x\n", STDERR)
        self.say(b"Welcome to the server!\n")
        self.end()


class AnswersWith(MemoryDuplex):
    """Gives the same result to every request, whatever was asked."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self._result = result

    def on_message(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self.answer(id=message["id"], result=self._result)


class RefusesEverything(MemoryDuplex):
    """Answers each request with an error."""

    def on_message(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self.answer(id=message["id"], error={"code": -32000, "message": "not today"})


class DoesNotRead(MemoryDuplex):
    """Whoever writes to it learns that it has ended, or does not read."""

    async def write(self, data: bytes) -> None:
        raise ServerGone("the server did not read its input for 10 s")


class StopsReading(MemoryDuplex):
    """Reads one message, and then no more."""

    async def write(self, data: bytes) -> None:
        if self.sent:
            raise ServerGone("the server did not read its input for 10 s")
        await super().write(data)


class ProcessDuplex:
    """The stdio of a child process, as an engine's attach stream gives it: stdout and stderr in pieces."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        self._stdin = process.stdin
        self._outputs = {STDOUT: process.stdout, STDERR: process.stderr}
        self._frames: asyncio.Queue[Frame | None] = asyncio.Queue(64)

    async def follow(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for stream, output in self._outputs.items():
                tasks.create_task(self._follow(stream, output))
        await self._frames.put(None)

    async def _follow(self, stream: int, output: asyncio.StreamReader) -> None:
        while data := await output.read(32 * 1024):
            await self._frames.put(Frame(stream, data))

    async def read(self) -> Frame | None:
        return await self._frames.get()

    async def write(self, data: bytes) -> None:
        try:
            self._stdin.write(data)
            await self._stdin.drain()
        except OSError as exc:
            raise ServerGone("the server's input is closed") from exc

    async def close(self) -> None:
        self._stdin.close()


@asynccontextmanager
async def connected(duplex: MemoryDuplex) -> AsyncIterator[McpConnection]:
    """A connection whose reading runs; it has to end by itself when the server ends."""
    connection = McpConnection(duplex)
    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(connection.read())
        yield connection
        duplex.end()
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.wait({reading})


@asynccontextmanager
async def running(*command: str) -> AsyncIterator[McpConnection]:
    """A connection to a real process. On leaving, its stdin is closed and it has to end."""
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=PIPE)
    duplex = ProcessDuplex(process)
    connection = McpConnection(duplex)
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(duplex.follow())
            tasks.create_task(connection.read())
            yield connection
            await duplex.close()
            async with asyncio.timeout(DEADLINE_S):
                await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
