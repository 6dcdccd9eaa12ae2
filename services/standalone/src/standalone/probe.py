"""Is a service ready? It says so itself, at /readyz."""

from __future__ import annotations

import asyncio
from typing import Final

from standalone.errors import NotReady
from standalone.process import Child

PROBE_TIMEOUT_S: Final = 2.0
PROBE_PERIOD_S: Final = 0.03
MAX_ANSWER_BYTES: Final = 64 * 1024


async def why_not_ready(host: str, port: int) -> str:
    """Empty if `GET /readyz` answers 200; otherwise what it answers, or why it does not."""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            status, body = await _get(host, port, "/readyz")
    except TimeoutError:
        return f"no answer within {PROBE_TIMEOUT_S:g} s"
    except OSError:
        return "it does not listen yet"
    except ValueError as exc:
        return str(exc)
    return "" if status == 200 else body.strip() or f"HTTP {status}"


async def wait_until_ready(name: str, host: str, port: int, timeout_s: float, child: Child | None = None) -> None:
    """Returns when the service is ready. A child that ends meanwhile is its watcher's matter.

    Raises:
        NotReady: if it is not after `timeout_s`.
    """
    reason = "it was never asked"
    try:
        async with asyncio.timeout(timeout_s):
            while reason := await why_not_ready(host, port):  # noqa: ASYNC110 - nobody tells us
                await asyncio.sleep(PROBE_PERIOD_S)
    except TimeoutError as exc:
        raise NotReady(name, timeout_s, reason, child.log_tail() if child else "") from exc


async def _get(host: str, port: int, path: str) -> tuple[int, str]:
    """Status and body.

    Raises:
        OSError: if nobody listens.
        ValueError: if the answer is not HTTP.
    """
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read(MAX_ANSWER_BYTES)
        while chunk := await reader.read(MAX_ANSWER_BYTES - len(answer)):
            answer += chunk
    finally:
        writer.close()
    head, _, body = answer.decode(errors="replace").partition("\r\n\r\n")
    words = head.split(maxsplit=2)
    if len(words) < 2 or not words[0].startswith("HTTP/") or not words[1].isdigit():
        raise ValueError("the answer is not HTTP")
    return int(words[1]), body
