"""Gateways over HTTP, for what is too large for a WebSocket's frames."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from typing import Final

import httpx

from client.endpoint import is_local
from client.errors import Refused

CONNECT_S: Final = 10.0
SILENCE_S: Final = 30.0
"""A gateway that sends or takes nothing for this long is left."""
MAX_PROBLEM_BYTES: Final = 64 * 1024


def http_client(urls: Sequence[str], key: str) -> httpx.AsyncClient:
    """For the gateways whose WebSocket addresses are `urls`."""
    return httpx.AsyncClient(
        headers={"Authorization": f"Bearer {key}", "Accept-Encoding": "identity"},
        timeout=httpx.Timeout(SILENCE_S, connect=CONNECT_S),
        trust_env=not all(is_local(url) for url in urls),
        verify=ssl.create_default_context(),  # that of the WebSockets
    )


async def refused(answer: httpx.Response) -> Refused:
    """What a gateway's refusal says; its body may still have to be read."""
    body = bytearray()
    async for data in answer.aiter_raw():
        body += data
        if len(body) > MAX_PROBLEM_BYTES:
            break
    try:
        problem = httpx.Response(answer.status_code, content=bytes(body)).json()
    except ValueError:
        problem = None
    return Refused.from_problem(answer.status_code, problem)
