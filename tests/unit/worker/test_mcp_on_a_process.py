"""JSON-RPC over the stdio of a real server process: the fixture of the integration tests, without a container."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.common.bus_rig import DEADLINE_S
from tests.unit.worker.duplexes import running
from worker.errors import HandshakeFailed, ServerGone, ToolProtocolError
from worker.mcp_connection import McpConnection

FIXTURE = (sys.executable, "-I", "-S", str(Path(__file__).parents[2] / "images/fixture/server.py"))
NEVER_S = 3600.0


@pytest.fixture
async def server() -> AsyncIterator[McpConnection]:
    """A server that is ready for calls."""
    async with running(*FIXTURE, "serve") as connection:
        async with asyncio.timeout(DEADLINE_S):
            await connection.handshake(None, NEVER_S)
        yield connection


async def call(server: McpConnection, tool: str, **arguments: Any) -> dict[str, Any]:
    async with asyncio.timeout(DEADLINE_S):
        return await server.request("tools/call", {"name": tool, "arguments": arguments})


def text_of(result: dict[str, Any]) -> str:
    return str(result["content"][0]["text"])


async def test_a_handshake_with_a_process_finds_its_era_and_its_name(server: McpConnection) -> None:
    """This one does not know the modern question."""
    assert server.era == "legacy"
    assert server.server_info == {"name": "fixture", "version": "1.0.0"}
    async with asyncio.timeout(DEADLINE_S):
        await server.ping()


async def test_the_tools_of_a_process_are_listed_with_all_that_it_says_of_them(server: McpConnection) -> None:
    """Schemas and hints as they are."""
    async with asyncio.timeout(DEADLINE_S):
        tools = {tool["name"]: tool for tool in await server.list_tools()}

    assert {"echo", "sleep", "count", "crash"} <= tools.keys()
    assert tools["echo"]["annotations"] == {"readOnlyHint": True}
    assert tools["echo"]["inputSchema"]["required"] == ["text"]


@pytest.mark.parametrize("size", [0, 1, 32 * 1024, 1_000_000], ids=str)
async def test_a_text_of_any_size_goes_there_and_back(server: McpConnection, size: int) -> None:
    """Through pipes that hold 64 KiB, so in many pieces."""
    text = ("zwölf 東京 " * (size // 10 + 1))[:size]

    assert text_of(await call(server, "echo", text=text)) == text


async def test_calls_at_once_are_each_answered_with_their_own_result(server: McpConnection) -> None:
    """In whatever order the server answers them."""
    results = await asyncio.gather(
        *(call(server, "sleep", ms=(20 - number) * 3, label=str(number)) for number in range(20))
    )

    assert [text_of(result) for result in results] == [str(number) for number in range(20)]


async def test_progress_of_a_process_comes_before_its_answer_and_in_order(server: McpConnection) -> None:
    """Each call has its own."""
    told: list[list[Any]] = [[], []]
    answers = []
    for number in range(2):
        params = {"name": "progress", "arguments": {"steps": 4, "delay_ms": 1}}
        _, answer = await server.send("tools/call", params, lambda p, n=number: told[n].append(p["progress"]))  # type: ignore[misc]
        answers.append(answer)
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(*answers)

    assert told == [[1, 2, 3, 4], [1, 2, 3, 4]]


async def test_what_a_process_prints_beside_its_messages_is_no_harm(server: McpConnection) -> None:
    """Text, broken JSON and bytes that are no text."""
    assert text_of(await call(server, "rubbish", text="fine")) == "fine"


async def test_a_cancelled_call_is_confirmed_by_its_error(server: McpConnection) -> None:
    """And the process serves on."""
    request_id, answer = await server.send("tools/call", {"name": "sleep", "arguments": {"ms": 3_600_000}})
    await server.cancel(request_id, "enough")
    with pytest.raises(ToolProtocolError, match="cancelled"):
        async with asyncio.timeout(DEADLINE_S):
            await answer

    assert text_of(await call(server, "echo", text="still here")) == "still here"


async def test_a_process_that_crashes_fails_every_call_that_it_had(server: McpConnection) -> None:
    """Not only the one at fault."""
    _, waiting = await server.send("tools/call", {"name": "hang", "arguments": {}})
    with pytest.raises(ServerGone):
        await call(server, "crash")
    with pytest.raises(ServerGone):
        async with asyncio.timeout(DEADLINE_S):
            await waiting
    assert server.ended


async def test_a_process_that_starts_slowly_is_waited_for() -> None:
    """The probe lies in its pipe until it reads."""
    async with running(*FIXTURE, "slow-start", "0.3") as connection, asyncio.timeout(DEADLINE_S):
        await connection.handshake(None, NEVER_S)

        assert connection.era == "legacy"


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("exit", "on stderr: fixture: told to exit"),
        ("rubbish", "on stdout it printed: not json: Listening on stdio"),
        ("no-such-mode", "a container starts per test"),
    ],
)
async def test_a_process_that_is_no_server_is_told_by_what_it_prints(mode: str, words: str) -> None:
    """The cause stands there more often than not."""
    async with running(*FIXTURE, mode) as connection:
        with pytest.raises((HandshakeFailed, TimeoutError)) as failed:
            async with asyncio.timeout(DEADLINE_S if mode != "rubbish" else 0.5):
                await connection.handshake(None, NEVER_S)
        said = connection.describe_failure("it failed")

    assert words in said
    assert failed.type is (TimeoutError if mode == "rubbish" else HandshakeFailed)


async def test_a_process_that_never_answers_is_given_up_by_the_callers_deadline() -> None:
    """After the probe was given up, and `initialize` tried."""
    async with running(*FIXTURE, "silent") as connection:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await connection.handshake(None, 0.05)
        assert not connection.ended
