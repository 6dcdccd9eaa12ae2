"""Keys in buckets: fenced, lapsing, deleted with a memory, watched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from common.buckets import Entry
from common.bus import Bus
from common.errors import Fenced
from common.streams import LEASES_BUCKET, SERVERS_BUCKET
from tests.nats_server import NatsServer
from tests.unit.common.bus_rig import DEADLINE_S, open_bus, until

KEY = "s1.srv"


async def until_gone(bus: Bus, bucket: str, key: str) -> Entry:
    async def gone() -> bool:
        return (await bus.get(bucket, key)).value is None

    await until(gone)
    return await bus.get(bucket, key)


async def until_value(entries: AsyncGenerator[Entry | None], key: str, value: bytes | None) -> list[Entry | None]:
    """What a watch tells, up to that value of that key."""
    told: list[Entry | None] = []
    async with asyncio.timeout(DEADLINE_S):
        async for entry in entries:
            told.append(entry)
            if entry and (entry.key, entry.value) == (key, value):
                break
    return told


# --- one key ------------------------------------------------------------------------------------------------


async def test_a_key_that_never_was_has_no_value_and_revision_0(bus: Bus) -> None:
    """Which is what a first write has to name."""
    assert await bus.get(LEASES_BUCKET, KEY) == Entry(KEY, None, 0)
    assert await bus.replace(LEASES_BUCKET, KEY, b"a", 0) == 1


async def test_a_value_comes_back_with_its_revision(bus: Bus) -> None:
    """Every write has a new one."""
    await bus.put(SERVERS_BUCKET, "a", b"1")
    first = await bus.get(SERVERS_BUCKET, "a")
    await bus.put(SERVERS_BUCKET, "a", b"2")
    second = await bus.get(SERVERS_BUCKET, "a")

    assert (first.value, second.value) == (b"1", b"2")
    assert second.revision > first.revision


async def test_of_two_who_replace_the_same_revision_one_is_fenced(bus: Bus, nats_server: NatsServer) -> None:
    """Whoever comes second learns that, and changes nothing."""
    async with open_bus(nats_server) as other:
        revision = await bus.replace(LEASES_BUCKET, KEY, b"mine", 0)
        for stale in (0, revision + 1):
            with pytest.raises(Fenced):
                await other.replace(LEASES_BUCKET, KEY, b"theirs", stale)
        assert (await other.get(LEASES_BUCKET, KEY)).value == b"mine"
        await other.replace(LEASES_BUCKET, KEY, b"theirs", revision)
        with pytest.raises(Fenced):
            await bus.replace(LEASES_BUCKET, KEY, b"mine", revision)

        assert (await bus.get(LEASES_BUCKET, KEY)).value == b"theirs"


async def test_a_deleted_key_has_no_value_and_is_replaced_at_its_revision(bus: Bus) -> None:
    """That it was there is told by the revision; deleting what is not there is no error."""
    revision = await bus.replace(LEASES_BUCKET, KEY, b"a", 0)
    await bus.delete(LEASES_BUCKET, KEY)
    await bus.delete(LEASES_BUCKET, "never.was")
    entry = await bus.get(LEASES_BUCKET, KEY)
    assert entry == Entry(KEY, None, revision + 1)
    with pytest.raises(Fenced):
        await bus.replace(LEASES_BUCKET, KEY, b"b", 0)

    assert await bus.replace(LEASES_BUCKET, KEY, b"b", entry.revision) > entry.revision


async def test_a_key_with_a_ttl_lapses_and_leaves_a_revision_to_take_over_at(bus: Bus) -> None:
    """A lease that its worker no longer renews; a renewed one stays."""
    await bus.replace(LEASES_BUCKET, KEY, b"gone", 0, ttl_s=1)
    kept = await bus.replace(LEASES_BUCKET, "s2.srv", b"kept", 0, ttl_s=1)
    kept = await bus.replace(LEASES_BUCKET, "s2.srv", b"kept", kept, ttl_s=60)
    lapsed = await until_gone(bus, LEASES_BUCKET, KEY)

    assert lapsed.revision > 1
    assert await bus.get(LEASES_BUCKET, "s2.srv") == Entry("s2.srv", b"kept", kept)
    await bus.replace(LEASES_BUCKET, KEY, b"again", lapsed.revision)
    assert (await bus.get(LEASES_BUCKET, KEY)).value == b"again"


async def test_a_purged_key_is_remembered_for_a_while_and_then_forgotten(bus: Bus) -> None:
    """While it is remembered, the next holder knows that there was one before."""
    revision = await bus.replace(LEASES_BUCKET, KEY, b"a", 0)
    await bus.purge(LEASES_BUCKET, KEY, remember_s=1)
    assert await bus.get(LEASES_BUCKET, KEY) == Entry(KEY, None, revision + 1)

    async def forgotten() -> bool:
        return (await bus.get(LEASES_BUCKET, KEY)).revision == 0

    await until(forgotten)
    await bus.replace(LEASES_BUCKET, KEY, b"b", 0)


# --- watching -----------------------------------------------------------------------------------------------


async def test_a_watch_tells_what_is_there_then_none_then_every_change(bus: Bus) -> None:
    """A deleted key comes without a value."""
    await bus.put(SERVERS_BUCKET, "a", b"1")
    await bus.put(SERVERS_BUCKET, "b", b"1")
    async with aclosing(bus.watch(SERVERS_BUCKET)) as entries, asyncio.timeout(DEADLINE_S):
        present = [await anext(entries) for _ in range(3)]
        await bus.put(SERVERS_BUCKET, "c", b"1")
        await bus.put(SERVERS_BUCKET, "a", b"2")
        await bus.delete(SERVERS_BUCKET, "b")
        changes = [await anext(entries) for _ in range(3)]

    assert present == [Entry("a", b"1", 1), Entry("b", b"1", 2), None]
    assert changes == [Entry("c", b"1", 3), Entry("a", b"2", 4), Entry("b", None, 5)]


async def test_a_watch_of_an_empty_bucket_begins_with_none(bus: Bus) -> None:
    """So that whoever waits for the catalog does not wait for ever."""
    async with aclosing(bus.watch(SERVERS_BUCKET)) as entries, asyncio.timeout(DEADLINE_S):
        assert await anext(entries) is None


async def test_a_watch_tells_that_a_key_has_lapsed(bus: Bus) -> None:
    """As if it had been deleted."""
    async with aclosing(bus.watch(LEASES_BUCKET)) as entries:
        assert await anext(entries) is None
        await bus.replace(LEASES_BUCKET, KEY, b"a", 0, ttl_s=1)
        told = await until_value(entries, KEY, None)

    assert [entry and entry.value for entry in told] == [b"a", None]


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "restarted"])
async def test_a_watch_goes_on_after_a_restart_of_the_store(bus: Bus, nats_server: NatsServer, kill: bool) -> None:
    """What changed meanwhile is told, `None` is not told again, and what changes afterwards is told."""
    await bus.put(SERVERS_BUCKET, "before", b"1")
    async with aclosing(bus.watch(SERVERS_BUCKET)) as entries:
        assert [entry and entry.key for entry in await until_value(entries, "before", b"1")] == ["before"]
        assert await anext(entries) is None
        await nats_server.stop(kill=kill)
        await nats_server.start()
        async with open_bus(nats_server) as other:
            await other.put(SERVERS_BUCKET, "meanwhile", b"1")
            told = await until_value(entries, "meanwhile", b"1")
            await other.put(SERVERS_BUCKET, "afterwards", b"1")
            told += await until_value(entries, "afterwards", b"1")

    assert None not in told
    assert {entry.key for entry in told if entry} <= {"before", "meanwhile", "afterwards"}
