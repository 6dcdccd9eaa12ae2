"""Answers that wait in a file: what of them is held, kept, told and freed."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from common.job_errors import JobError
from tests.unit.common.bus_rig import DEADLINE_S
from tests.unit.worker.duplexes import MemoryDuplex, connected
from worker.errors import AnswerNotKept, HandshakeFailed, OutputTooLarge, ToolProtocolError
from worker.large_answer import MAX_PARSED_BYTES, LargeAnswer
from worker.mcp_connection import Answer
from worker.output_stream import OutputLimits

MIB = 1024 * 1024
PIECE_BYTES = 32 * 1024
RESULT = {"content": [{"type": "text", "text": "x" * 2 * MIB}]}


def say(duplex: MemoryDuplex, line: bytes, end: bytes = b"\n") -> None:
    """As an engine passes it on."""
    for at in range(0, len(line), PIECE_BYTES):
        duplex.say(line[at : at + PIECE_BYTES])
    duplex.say(end)


def message(**members: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **members}).encode()


async def outcome(waiting: asyncio.Future[Answer]) -> Answer | JobError:
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.wait({waiting})
    failure = waiting.exception()
    assert failure is None or isinstance(failure, JobError)
    return failure or waiting.result()


async def outcome_of(line: bytes, limits: OutputLimits | None = None) -> Answer | JobError:
    """What becomes of a call that is answered by it. The call beside it is answered as ever."""
    duplex = MemoryDuplex()
    async with connected(duplex) as connection:
        if limits:
            connection.limits = limits
        _, first = await connection.send("tools/call", {})
        _, second = await connection.send("tools/call", {})
        say(duplex, line)
        duplex.answer(id=2, result={"n": 2})

        assert await outcome(second) == {"n": 2}
        assert first.done(), "its line came before"
        assert not connection.ended
    return await outcome(first)


def nameless_files() -> set[str]:
    """Of this process: open, and in no folder."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(link)
        except FileNotFoundError:
            continue  # the folder's own
        if target.startswith("/") and target.endswith(" (deleted)"):
            found.add(target)
    return found


@pytest.fixture(autouse=True)
def no_file_left() -> Iterator[None]:
    before = nameless_files()
    yield
    gc.collect()
    assert nameless_files() <= before


# --- what cannot be kept ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2 * MIB, 1000], ids=["while it comes", "at its end"])
async def test_a_full_disk_fails_the_call_whose_answer_it_cannot_take(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """No other one, and not the reading: also where the file takes it in, and has no room when it is written out."""

    def full_disk(buffering: int) -> IO[bytes]:
        return open("/dev/full", "w+b", buffering=buffering)

    monkeypatch.setattr(tempfile, "TemporaryFile", full_disk)
    result = {"content": "x" * size}

    failed = await outcome_of(message(id=1, result=result), OutputLimits(collect=500))

    assert isinstance(failed, AnswerNotKept)
    assert "No space left on device" in failed.message


async def test_a_folder_that_is_missing_fails_the_call_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The disk may have been taken away."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))

    assert isinstance(await outcome_of(message(id=1, result=RESULT)), AnswerNotKept)


@pytest.mark.parametrize("id_last", [True, False], ids=["id last", "id first"])
async def test_an_answer_that_may_not_be_kept_is_told_with_its_size(id_last: bool) -> None:
    """It was read to its end for that."""
    members = [("id", 1), ("result", RESULT)]
    line = message(**dict(reversed(members) if id_last else members))

    failed = await outcome_of(line, OutputLimits(most=MIB + MIB // 2))

    assert isinstance(failed, OutputTooLarge)
    assert failed.data == {"size": len(json.dumps(RESULT)), "limit": MIB + MIB // 2}


# --- what is no result ----------------------------------------------------------------------------------------------


async def test_a_result_beside_an_error_of_null_is_a_result() -> None:
    """Some servers write both."""
    answer = await outcome_of(message(id=1, error=None, result=RESULT))

    assert isinstance(answer, LargeAnswer)
    answer.close()


async def test_a_short_error_in_a_long_line_is_told_as_the_server_told_it() -> None:
    """With its code."""
    failed = await outcome_of(message(note="x" * 2 * MIB, error={"code": -32000, "message": "no", "data": 7}, id=1))

    assert isinstance(failed, ToolProtocolError)
    assert (failed.message, failed.data) == ("no", {"code": -32000, "data": 7})


@pytest.mark.parametrize("result", ["x" * 2 * MIB, ["x" * 2 * MIB]], ids=["text", "list"])
async def test_a_long_result_that_is_no_object_fails_its_call(result: Any) -> None:
    """As a short one does."""
    failed = await outcome_of(message(id=1, result=result))

    assert isinstance(failed, ToolProtocolError)
    assert "neither a result nor an error" in failed.message


async def test_an_answer_that_breaks_fails_its_call_at_once() -> None:
    """If it has said which: nobody should wait for it until the timeout."""
    failed = await outcome_of(message(id=1, result=RESULT) + b'}, "x"')

    assert isinstance(failed, ToolProtocolError)
    assert "the answer is not JSON: more follows behind its end" in failed.message


# --- what is not taken ------------------------------------------------------------------------------------------------


async def test_an_answer_that_nobody_takes_is_freed() -> None:
    """Forgotten by its caller, of a call that was given up, of no call, and cut off by the server's end."""
    duplex = MemoryDuplex()
    async with connected(duplex) as connection:
        before = nameless_files()
        _, forgotten = await connection.send("tools/call", {})
        _, given_up = await connection.send("tools/call", {})
        given_up.cancel()
        say(duplex, message(id=1, result=RESULT))
        say(duplex, message(id=2, result=RESULT))
        say(duplex, message(id=99, result=RESULT))
        _, cut_off = await connection.send("tools/call", {})
        duplex.answer(id=3, result={})
        await outcome(cut_off)
        assert isinstance(forgotten.result(), LargeAnswer)
        assert len(nameless_files() - before) == 1
        del forgotten
        gc.collect()
        assert nameless_files() == before

        say(duplex, message(id=4, result=RESULT), end=b"")


# --- questions of ours ------------------------------------------------------------------------------------------------


async def listed(description: str) -> list[dict[str, Any]] | BaseException:
    duplex = MemoryDuplex()

    async def answer() -> None:
        await duplex.until_sent(1)
        say(duplex, message(result={"tools": [{"name": "a", "description": description}]}, id=1))

    async with connected(duplex) as connection, asyncio.timeout(DEADLINE_S):
        tools: list[dict[str, Any]] | BaseException
        tools, _ = await asyncio.gather(connection.list_tools(), answer(), return_exceptions=True)
    return tools


async def test_a_long_list_of_tools_is_read() -> None:
    """It is longer than what is held of a call's answer."""
    assert await listed("x" * 2 * MIB) == [{"name": "a", "description": "x" * 2 * MIB}]


async def test_a_list_of_tools_without_measure_is_refused() -> None:
    """It would have to be held."""
    refused = await listed("x" * MAX_PARSED_BYTES)

    assert isinstance(refused, HandshakeFailed)
    assert f"the limit is {MAX_PARSED_BYTES}" in refused.message


# --- memory ----------------------------------------------------------------------------------------------------------

WITNESS = """
import asyncio, resource
from worker.engine import STDOUT, Frame
from worker.mcp_connection import McpConnection

class Talks:
    frames = iter(())
    async def read(self):
        await asyncio.sleep(0)
        return next(self.frames, None)
    async def write(self, data): pass

def line(size, number):
    yield Frame(STDOUT, b'{"result":{"content":[{"type":"text","text":"')
    for _ in range(size // 32768):
        yield Frame(STDOUT, b"a line\\\\n" * 4096)
    yield Frame(STDOUT, b'"}]},"jsonrpc":"2.0","id":%d}\\n' % number)

def rubbish(size):
    for _ in range(size // 32768):
        yield Frame(STDOUT, b"Listening " * 3276)
    yield Frame(STDOUT, b"\\n")

async def passes(*frames):
    duplex = Talks()
    connection = McpConnection(duplex)
    _, answer = await connection.send("tools/call", {})
    duplex.frames = (frame for part in frames for frame in part)
    await connection.read()
    size = 0
    async for chunk in answer.result().chunks():
        size += len(chunk)
    answer.result().close()
    return size

async def main():
    await passes(rubbish(4 * 2**20), line(4 * 2**20, 1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = await passes(rubbish(2**28), line(2**28, 1))
    print(size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)

asyncio.run(main())
"""


def test_the_process_does_not_grow_while_a_long_line_passes() -> None:
    """Half a GiB in two lines, of which one is an answer that is read back; the kernel counts the process's memory."""
    done = subprocess.run([sys.executable, "-c", WITNESS], capture_output=True, text=True, check=True, timeout=50)
    size, grown_kib = map(int, done.stdout.split())

    assert size > 2**28 * 7 // 8
    assert grown_kib < 4 * 1024
