"""The catalog and the listings, as every service sees them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import TypeVar

import pytest

from common import registry
from common.bus import Bus
from common.catalog import ServerSpec, parse
from common.schema import ToolListing
from common.streams import SERVERS_BUCKET, TOOLS_BUCKET
from tests.nats_server import NatsServer
from tests.unit.common.bus_rig import DEADLINE_S

T = TypeVar("T")

CATALOG = """
servers:
  time: {image: time:1, concurrency: {cluster: 7}}
  git: {image: git:1, scope: session}
"""


async def present(updates: AsyncGenerator[tuple[str, T] | None]) -> dict[str, T]:
    """What a watch tells before its None."""
    found: dict[str, T] = {}
    async with aclosing(updates), asyncio.timeout(DEADLINE_S):
        async for update in updates:
            if update is None:
                break
            found[update[0]] = update[1]
    return found


async def limits(bus: Bus) -> dict[str, int]:
    """Each server's queue and its cluster-wide limit."""
    found = await bus.client.jetstream().consumers_info("JOBS")
    return {info.name: info.config.max_ack_pending or 0 for info in found}


async def test_an_applied_catalog_is_what_every_service_sees(bus: Bus) -> None:
    """Entry by entry, each with its queue and its limit."""
    catalog = parse(CATALOG, "f")
    await registry.apply(bus, catalog)

    assert await present(registry.watch_servers(bus)) == catalog
    assert await limits(bus) == {"time": 7, "git": 1000}


async def test_applying_the_same_catalog_again_writes_nothing(bus: Bus) -> None:
    """Nobody has to look at entries that did not change."""
    await registry.apply(bus, parse(CATALOG, "f"))
    before = await bus.client.jetstream().stream_info("KV_servers")
    await registry.apply(bus, parse(CATALOG, "f"))
    after = await bus.client.jetstream().stream_info("KV_servers")

    assert after.state.last_seq == before.state.last_seq


async def test_applying_another_catalog_adds_changes_and_removes(bus: Bus) -> None:
    """What left the file leaves the store, queue included; limits are brought up to date."""
    await registry.apply(bus, parse(CATALOG, "f"))
    other = parse("servers: {time: {image: time:2, concurrency: {cluster: 3}}, new: {image: n}}", "f")
    await registry.apply(bus, other)
    seen = await present(registry.watch_servers(bus))

    assert seen == {**other, "git": None}
    assert await limits(bus) == {"time": 3, "new": 1000}


async def test_a_change_of_the_catalog_reaches_who_watches_it(bus: Bus) -> None:
    """Without a restart of anything."""
    async with aclosing(registry.watch_servers(bus)) as changes, asyncio.timeout(DEADLINE_S):
        assert await anext(changes) is None
        await registry.apply(bus, {"a": ServerSpec(image="x")})
        assert await anext(changes) == ("a", ServerSpec(image="x"))
        await registry.apply(bus, {})
        assert await anext(changes) == ("a", None)


@pytest.mark.parametrize("entry", [b"not json", b"{}", b'{"image": "x", "colour": "red"}'])
async def test_an_entry_that_this_version_cannot_read_counts_as_removed(bus: Bus, entry: bytes) -> None:
    """The others are served."""
    await bus.put(SERVERS_BUCKET, "newer", entry)
    await bus.put(SERVERS_BUCKET, "known", b'{"image": "x"}')

    assert await present(registry.watch_servers(bus)) == {"newer": None, "known": ServerSpec(image="x")}


async def test_a_listing_reaches_who_watches_and_an_unreadable_one_counts_as_none(bus: Bus) -> None:
    """A worker of a newer version may have written it."""
    listing = ToolListing(entry="e", status="ready", tools=[{"name": "t"}])
    await registry.publish_listing(bus, "time", listing)
    await bus.put(TOOLS_BUCKET, "newer", b"\xc1")
    await registry.publish_listing(bus, "gone", listing)
    await bus.delete(TOOLS_BUCKET, "gone")

    assert await present(registry.watch_listings(bus)) == {"time": listing, "newer": None, "gone": None}


# --- python -m common.apply -----------------------------------------------------------------------------------


def apply_file(file: Path, nats_url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "common.apply", str(file)],
        env={**os.environ, "NATS_URL": nats_url},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


async def test_a_catalog_file_is_applied_from_the_command_line(
    bus: Bus, nats_server: NatsServer, tmp_path: Path
) -> None:
    """Exit code 0 when the store says what the file says."""
    file = tmp_path / "servers.yaml"
    file.write_text(CATALOG)
    ran = await asyncio.to_thread(apply_file, file, nats_server.url)

    assert (ran.returncode, ran.stderr) == (0, "")
    assert await present(registry.watch_servers(bus)) == parse(CATALOG, "f")


def test_a_catalog_file_with_faults_is_refused_with_all_of_them(tmp_path: Path) -> None:
    """Exit code 1; no store is needed to find them."""
    file = tmp_path / "servers.yaml"
    file.write_text("servers:\n  A: {image: x}\n  b: {}\n")
    ran = apply_file(file, "nats://127.0.0.1:1")

    assert ran.returncode == 1
    assert [line.split(": ")[:2] for line in ran.stderr.splitlines()[1:]] == [
        [f"{file}:2", "A"], [f"{file}:3", "b.image"]
    ]  # fmt: skip
