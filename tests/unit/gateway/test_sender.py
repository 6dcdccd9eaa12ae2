"""Is a client stalled? Only one that takes nothing at all of what is sent to it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import chain, repeat

from starlette.types import Message

from gateway.sender import LOOKS, Sender
from tests.unit.common.bus_rig import DEADLINE_S, counted

BRIEF_S = 0.01
MESSAGE: Message = {"type": "websocket.send", "text": "x"}


class Client:
    """Its socket has taken so many bytes at each look; a send ends when `takes` is set, or the connection."""

    def __init__(self, looks: Iterator[int]) -> None:
        self._looks = looks
        self.looked = 0
        self.takes = asyncio.Event()
        self.was_cut = False

    @property
    def taken(self) -> int:
        self.looked += 1
        return next(self._looks)

    async def send(self, _: Message) -> None:
        async with asyncio.timeout(DEADLINE_S):
            await self.takes.wait()

    def cut(self) -> None:
        self.was_cut = True
        self.takes.set()


def sender(client: Client) -> Sender:
    return Sender(client, {"path": "/v1/ws"}, client.send, BRIEF_S)


async def later() -> None:
    """Returns when every send that has begun and takes nothing was found to be stalled."""
    await sender(Client(repeat(0))).send(MESSAGE)


async def test_a_client_that_takes_nothing_is_cut() -> None:
    """What was sent before does not matter; each is counted once."""
    stalled = counted("connections_stalled_total")
    client = Client(repeat(7))
    await sender(client).send(MESSAGE)
    assert client.was_cut
    assert client.looked == 1 + LOOKS
    assert counted("connections_stalled_total") == stalled + 1


async def test_a_client_that_reads_slowly_is_not_stalled() -> None:
    """However long one message takes, of which a byte is taken now and then. When that ends it is."""
    client = Client(chain((look // LOOKS for look in range(10 * LOOKS)), repeat(9)))
    await sender(client).send(MESSAGE)
    assert client.was_cut
    assert client.looked == 9 * LOOKS + 1 + LOOKS


async def test_a_send_that_ended_is_not_looked_at_any_more() -> None:
    """Nor does it count for the next one."""
    client = Client(repeat(1))
    client.takes.set()
    watched = sender(client)
    await watched.send(MESSAGE)
    await watched.send(MESSAGE)
    await later()
    assert client.looked == 2
    assert not client.was_cut


async def test_who_sends_may_part_from_a_stalled_client_with_a_last_word() -> None:
    """It is told once, and what is sent then is not taken for stalled again."""
    told: asyncio.Queue[str] = asyncio.Queue()
    client = Client(repeat(0))
    watched = sender(client)
    watched.on_stalled = lambda: told.put_nowait("stalled")
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(watched.send(MESSAGE))
        second = tasks.create_task(watched.send(MESSAGE))
        await told.get()
        await later()
        assert not first.done()
        assert not second.done()
        client.takes.set()
    assert told.empty()
    assert not client.was_cut
