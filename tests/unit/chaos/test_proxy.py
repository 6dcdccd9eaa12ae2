"""The proxy of the fault run: each fault does to a connection what it says, and ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import perf_counter

import pytest

from tests.chaos.proxy import Proxy, run_proxy

DEADLINE_S = 5.0


@dataclass
class Pair:
    """A connection through the proxy: `proxy`, the client's end, the server's end."""

    proxy: Proxy
    client: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    server: tuple[asyncio.StreamReader, asyncio.StreamWriter]

    async def say(self, data: bytes) -> None:
        self.client[1].write(data)
        await self.client[1].drain()

    async def heard(self, count: int) -> bytes:
        async with asyncio.timeout(DEADLINE_S):
            return await self.server[0].readexactly(count)

    async def ended(self) -> bool:
        """Does the client see the end of the connection?"""
        try:
            async with asyncio.timeout(DEADLINE_S):
                return await self.client[0].read() == b""
        except ConnectionResetError:
            return True


@asynccontextmanager
async def connected() -> AsyncIterator[Pair]:
    accepted: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    listener = await asyncio.start_server(lambda *ends: accepted.append(ends), "127.0.0.1", 0)
    async with listener, run_proxy(listener.sockets[0].getsockname()[1]) as proxy:
        client = await asyncio.open_connection("127.0.0.1", proxy.port)
        try:
            await through(proxy)
            yield Pair(proxy, client, accepted[0])
        finally:
            for _, writer in (client, *accepted):
                writer.transport.abort()


async def through(proxy: Proxy) -> None:
    """Returns when a connection stands on both sides."""
    async with asyncio.timeout(DEADLINE_S):
        while not proxy.connections:
            await asyncio.sleep(0)


async def test_without_a_fault_it_is_a_wire() -> None:
    """Both directions, and the end of each."""
    async with connected() as pair:
        await pair.say(b"there")
        assert await pair.heard(5) == b"there"
        pair.server[1].write(b"back")
        assert await pair.client[0].readexactly(4) == b"back"
        pair.server[1].write_eof()
        assert await pair.ended()


async def test_drop_ends_what_is_there_and_refuses_what_comes_until_it_is_healed() -> None:
    """As a gateway's load balancer that is restarted."""
    async with connected() as pair:
        pair.proxy.drop()
        assert await pair.ended()
        reader, writer = await asyncio.open_connection("127.0.0.1", pair.proxy.port)
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        writer.transport.abort()
        pair.proxy.heal()
        _, writer = await asyncio.open_connection("127.0.0.1", pair.proxy.port)
        await through(pair.proxy)
        writer.transport.abort()


async def test_delay_holds_data_back() -> None:
    """Nothing is lost, nothing overtakes."""
    async with connected() as pair:
        pair.proxy.delay(0.1)
        begun = perf_counter()
        await pair.say(b"one")
        await pair.say(b"two")
        assert await pair.heard(6) == b"onetwo"
        assert perf_counter() - begun >= 0.1
        pair.proxy.heal()


async def test_stall_moves_nothing_until_it_is_healed() -> None:
    """And neither end learns of it."""
    async with connected() as pair:
        pair.proxy.stall()
        await pair.say(b"late")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await pair.server[0].read(1)
        assert not pair.client[0].at_eof()
        pair.proxy.heal()
        assert await pair.heard(4) == b"late"


async def test_half_close_ends_it_for_the_server_only_until_it_is_healed() -> None:
    """The client goes on talking to nobody, then is told."""
    async with connected() as pair:
        pair.proxy.half_close()
        assert await pair.heard(0) == b""
        async with asyncio.timeout(DEADLINE_S):
            assert await pair.server[0].read() == b""
        await pair.say(b"hello?")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await pair.client[0].read(1)
        pair.proxy.heal()
        assert await pair.ended()
