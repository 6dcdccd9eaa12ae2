"""A store of conversations on a real nats-server, and messages to put in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from common.bus import Bus
from common.conversations.reading import Numbered, Page
from common.conversations.repository import Conversations

SESSION = "5e5510"
TTL_S = 600.0
DEADLINE_S = 20.0


@asynccontextmanager
async def conversations_on(bus: Bus, *, compress: bool = True) -> AsyncIterator[Conversations]:
    async with asyncio.TaskGroup() as tasks:
        opened = Conversations(bus, compress=compress)
        running = tasks.create_task(opened.run())
        try:
            yield opened
        finally:
            running.cancel()


def message(number: int, size: int = 60) -> dict[str, Any]:
    return {"role": "user", "content": f"{number}:" + "word " * (size // 5), "time_ms": 1_700_000_000_000 + number}


def numbers(page: Page) -> list[int]:
    return [each.number for each in page.messages]


async def filled(conversations: Conversations, count: int, size: int = 60, first: int = 1) -> None:
    """`count` messages, each added by itself."""
    for number in range(first, first + count):
        assert await conversations.append(SESSION, [message(number, size)], ttl_s=TTL_S) == number


async def everything(conversations: Conversations) -> list[Numbered]:
    found = [item async for item in conversations.export(SESSION)]
    assert all(isinstance(item, Numbered) for item in found), found
    return [item for item in found if isinstance(item, Numbered)]


def assert_complete(found: list[Numbered], count: int, size: int = 60) -> None:
    assert [each.number for each in found] == list(range(1, count + 1))
    assert [each.message for each in found] == [message(number, size) for number in range(1, count + 1)]
