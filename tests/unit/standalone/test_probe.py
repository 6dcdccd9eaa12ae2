"""Asking a service whether it is ready."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from standalone.errors import NotReady
from standalone.probe import wait_until_ready, why_not_ready

HOST = "127.0.0.1"


@asynccontextmanager
async def answering(answer: Callable[[], bytes]) -> AsyncIterator[int]:
    serving: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        try:
            with suppress(asyncio.IncompleteReadError):  # whoever asked has given up
                await reader.readuntil(b"\r\n\r\n")
                writer.write(answer())
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async with await asyncio.start_server(serve, HOST, 0) as server:
        yield server.sockets[0].getsockname()[1]
    await asyncio.gather(*filter(None, serving))


def http(status: int, body: str) -> bytes:
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


async def test_a_ready_service_has_no_reason() -> None:
    """Status 200."""
    async with answering(lambda: http(200, "ready")) as port:
        assert await why_not_ready(HOST, port) == ""


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (http(503, "pools are warming up: git\n"), "pools are warming up: git"),
        (http(503, ""), "HTTP 503"),
        (b"SSH-2.0-OpenSSH\r\n", "the answer is not HTTP"),
        (b"", "the answer is not HTTP"),
    ],
)
async def test_a_service_that_is_not_ready_says_why(answer: bytes, reason: str) -> None:
    """The reason goes into the error, should it last."""
    async with answering(lambda: answer) as port:
        assert await why_not_ready(HOST, port) == reason


async def test_a_service_that_does_not_listen_is_not_ready() -> None:
    """As in its first moments."""
    with socket.socket() as unused:
        unused.bind((HOST, 0))
        assert await why_not_ready(HOST, unused.getsockname()[1]) == "it does not listen yet"


async def test_waiting_ends_with_the_first_good_answer() -> None:
    """However many bad ones came before."""
    answers = iter([http(503, "no"), http(503, "no"), http(200, "")])
    async with answering(lambda: next(answers)) as port:
        await wait_until_ready("gateway", HOST, port, timeout_s=10)

    assert next(answers, None) is None


async def test_waiting_has_a_deadline_and_tells_the_last_reason() -> None:
    """Not only that it took too long."""
    async with answering(lambda: http(503, "NATS is away")) as port:
        with pytest.raises(NotReady, match=r"gateway is not ready after 0\.1 s: NATS is away"):
            await wait_until_ready("gateway", HOST, port, timeout_s=0.1)
