"""The embedded nats-server, for real."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
import nats
import pytest

from common.settings import DurabilityLevel
from standalone.errors import ServiceEnded, StoreInUse
from standalone.leftovers import processes_of
from standalone.nats_server import run_nats_server

DEADLINE_S = 15.0


async def test_the_server_answers_when_it_is_there_and_is_gone_afterwards(tmp_path: Path) -> None:
    """JetStream on, messages of up to 8 MB, loopback only, any free port."""
    async with asyncio.timeout(DEADLINE_S), run_nats_server(tmp_path) as server:
        client = await nats.connect(server.url)
        info = client._server_info
        await client.close()

    assert server.url.startswith("nats://127.0.0.1:")
    assert info["jetstream"]
    assert info["max_payload"] == 8_000_000 or info["max_payload"] == 8 * 1024 * 1024
    assert not processes_of([server.child.pid])


async def test_what_is_stored_survives_a_restart(tmp_path: Path) -> None:
    """The same folder is the same store."""
    async with asyncio.timeout(DEADLINE_S):
        async with run_nats_server(tmp_path) as server:
            client = await nats.connect(server.url)
            await client.jetstream().add_stream(name="KEPT", subjects=["kept"])
            await client.jetstream().publish("kept", b"still here")
            await client.close()
        async with run_nats_server(tmp_path) as server:
            client = await nats.connect(server.url)
            message = await client.jetstream().get_last_msg("KEPT", "kept")
            await client.close()

    assert message.data == b"still here"


@pytest.mark.parametrize(("level", "synced"), [("process", None), ("power", True)])
async def test_a_level_is_what_the_running_server_says_of_itself(
    tmp_path: Path, level: DurabilityLevel, synced: bool | None
) -> None:
    """At `power` it syncs before it acknowledges; asked where it is monitored, which is on loopback only."""
    async with (
        asyncio.timeout(DEADLINE_S),
        run_nats_server(tmp_path, durability=level) as server,
        httpx.AsyncClient(trust_env=False) as http,
    ):
        config = (await http.get(f"{server.monitor_url}/varz")).json()["jetstream"]["config"]

    assert config.get("sync_always") is synced
    assert config["sync_interval"] == 120 * 1e9
    assert server.monitor_url.startswith("http://127.0.0.1:")


async def test_the_next_start_of_a_store_may_have_another_level(tmp_path: Path) -> None:
    """It is the server's, not the store's: nothing has to be made anew."""
    levels: list[DurabilityLevel] = ["process", "power", "process"]
    async with asyncio.timeout(DEADLINE_S), httpx.AsyncClient(trust_env=False) as http:
        said = []
        for level in levels:
            async with run_nats_server(tmp_path, durability=level) as server:
                config = (await http.get(f"{server.monitor_url}/varz")).json()["jetstream"]["config"]
                said.append(config.get("sync_always", False))

    assert said == [False, True, False]


async def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    """Two servers on one store would destroy it."""
    async with asyncio.timeout(DEADLINE_S), run_nats_server(tmp_path) as server:
        with pytest.raises(StoreInUse, match="in use by another instance"):
            async with run_nats_server(tmp_path):
                pass
        assert server.child.running


async def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    """Its own words are in the details."""
    async with asyncio.timeout(DEADLINE_S), run_nats_server(tmp_path / "first") as first:
        taken = int(first.url.rsplit(":", 1)[1])
        with pytest.raises(ServiceEnded, match="nats-server ended with exit code 1") as ended:
            async with run_nats_server(tmp_path / "second", port=taken):
                pass

    assert "address already in use" in ended.value.details


async def test_what_an_earlier_server_left_is_not_believed(tmp_path: Path) -> None:
    """The address of a server that was killed is still in its file."""
    stale = tmp_path / "nats-server_1.ports"
    stale.write_text(json.dumps({"nats": ["nats://127.0.0.1:1"], "monitoring": ["http://127.0.0.1:1"]}))
    async with asyncio.timeout(DEADLINE_S), run_nats_server(tmp_path) as server:
        assert server.url != "nats://127.0.0.1:1"
        assert not stale.exists()
