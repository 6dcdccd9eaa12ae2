"""Whether the store keeps to DURABILITY: real servers of every kind are asked, and every shortfall is told."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import nats
import pytest
import structlog
from nats.js.api import PersistMode
from structlog.testing import LogCapture

from common import durability
from common.bus import Bus, connect
from common.durability import MONITOR_TIMEOUT_S, NEVER_ASYNC, Durability
from common.errors import StoreUnavailable
from common.settings import BusSettings, DurabilityLevel
from common.streams import JOBS, Limits, stream_configs
from standalone.nats_server import BINARY, NatsServer, run_nats_server
from standalone.process import run_process
from tests.unit.common.bus_rig import DEADLINE_S, counted, until

SYNCED: dict[str, Any] = {"durability": "power", "nats_replicas": 1}
"""What a single server can be asked for."""


@asynccontextmanager
async def running(folder: Path, level: DurabilityLevel) -> AsyncIterator[tuple[NatsServer, Bus]]:
    """A server as it is at a level, and a connection to it that asks for nothing."""
    async with (
        asyncio.timeout(DEADLINE_S),
        run_nats_server(folder, durability=level) as server,
        connect(BusSettings(nats_url=server.url), "test") as bus,
    ):
        yield server, bus


async def weaknesses(bus: Bus, **asked: Any) -> list[str]:
    """What one look finds."""
    found = Durability(BusSettings(**asked))
    await found.look(bus)
    assert counted("durability_weaknesses") == len(found.weaknesses)
    return found.weaknesses


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> LogCapture:
    """What `common.durability` logs."""
    capture = LogCapture()
    monkeypatch.setattr(durability, "_log", structlog.wrap_logger(None, processors=[capture]))
    return capture


# --- servers ------------------------------------------------------------------------------------------------


async def test_a_server_that_syncs_later_is_told_with_its_interval(tmp_path: Path) -> None:
    """nats-server's own default: two minutes of what was acknowledged may be gone."""
    async with running(tmp_path, "process") as (server, bus):
        [weakness] = await weaknesses(bus, **SYNCED, nats_monitor_url=server.monitor_url)

    assert weakness.startswith(f"nats-server standalone ({server.monitor_url}) syncs to disk every 120 s, not before")
    assert "lost with its machine's power; set sync_interval: always in its jetstream block" in weakness


async def test_a_server_that_syncs_first_has_no_weakness(tmp_path: Path) -> None:
    """As it is at `power`."""
    async with running(tmp_path, "power") as (server, bus):
        assert await weaknesses(bus, **SYNCED, nats_monitor_url=server.monitor_url) == []


async def test_a_server_that_is_stronger_than_asked_has_no_weakness(tmp_path: Path) -> None:
    """It syncs, and nobody wants it."""
    async with running(tmp_path, "power") as (server, bus):
        assert await weaknesses(bus, durability="process", nats_monitor_url=server.monitor_url) == []


async def test_at_process_no_server_is_asked(tmp_path: Path) -> None:
    """Whenever it syncs, the kill of a process loses nothing: its address may be dead."""
    async with running(tmp_path, "process") as (_, bus):
        assert await weaknesses(bus, durability="process", nats_monitor_url="http://127.0.0.1:1") == []


async def test_without_a_monitoring_address_power_cannot_be_verified(tmp_path: Path) -> None:
    """Not even of a server that keeps to it; the sentence names the setting."""
    async with running(tmp_path, "power") as (_, bus):
        [weakness] = await weaknesses(bus, **SYNCED)

    assert weakness.startswith("NATS_MONITOR_URL is not set: it cannot be verified")


async def test_an_address_where_nobody_listens_is_told(tmp_path: Path) -> None:
    """Beside one that answers well."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        silent = f"http://127.0.0.1:{free.getsockname()[1]}"
    async with running(tmp_path, "power") as (server, bus):
        [weakness] = await weaknesses(bus, **SYNCED, nats_monitor_url=f"{server.monitor_url},{silent}")

    assert weakness.startswith(f"the monitoring address {silent} does not answer (Connection refused): it cannot be")


async def test_an_address_that_never_answers_is_given_up_in_time(tmp_path: Path) -> None:
    """A frozen server still has its connections accepted, by the kernel. The event loop runs on meanwhile."""
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        address = f"http://127.0.0.1:{frozen.getsockname()[1]}"
        async with running(tmp_path, "power") as (_, bus), asyncio.TaskGroup() as tasks:
            begun = monotonic()
            looking = tasks.create_task(weaknesses(bus, **SYNCED, nats_monitor_url=address))
            turns = 0
            while not looking.done():
                await bus.client.flush()
                turns += 1
            took = monotonic() - begun

    assert looking.result()[0].startswith(f"the monitoring address {address} does not answer within 2 s")
    assert MONITOR_TIMEOUT_S <= took < 2 * MONITOR_TIMEOUT_S
    assert turns > 50


async def test_an_answer_that_trickles_is_given_up_in_time(tmp_path: Path) -> None:
    """The deadline is for the whole answer, not for each byte of it."""

    left = asyncio.Event()

    async def trickle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        try:
            while True:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.05)
        except ConnectionError:
            writer.close()
            left.set()

    async with running(tmp_path, "power") as (_, bus), await asyncio.start_server(trickle, "127.0.0.1", 0) as trickling:
        address = f"http://127.0.0.1:{trickling.sockets[0].getsockname()[1]}"
        begun = monotonic()
        [weakness] = await weaknesses(bus, **SYNCED, nats_monitor_url=address)
        took = monotonic() - begun
        await left.wait()

    assert "does not answer within 2 s" in weakness
    assert took < 2 * MONITOR_TIMEOUT_S


async def test_an_address_of_something_else_is_told(tmp_path: Path) -> None:
    """The port for clients, taken for the one for monitoring."""
    async with running(tmp_path, "power") as (server, bus):
        address = server.url.replace("nats://", "http://")
        [weakness] = await weaknesses(bus, **SYNCED, nats_monitor_url=address)

    assert weakness.startswith(f"the monitoring address {address} does not answer as a nats-server does")


async def test_the_environments_proxy_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would not reach the servers."""
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with running(tmp_path, "power") as (server, bus):
        assert await weaknesses(bus, **SYNCED, nats_monitor_url=server.monitor_url) == []


@asynccontextmanager
async def three_nodes(folder: Path) -> AsyncIterator[list[str]]:
    """The monitoring addresses of a cluster that syncs; nats://… is the last one's."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(9)]
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in ports[:3])
    async with AsyncExitStack() as nodes:
        for number in range(3):
            config = folder / f"{number}.conf"
            config.write_text(
                f"""
                server_name: n{number}
                listen: "127.0.0.1:{ports[3 + number]}"
                http: "127.0.0.1:{ports[6 + number]}"
                cluster {{ name: c, listen: "127.0.0.1:{ports[number]}", routes: [{routes}] }}
                jetstream {{ store_dir: "{folder / str(number)}", max_file_store: 24GB, sync_interval: always }}
                """
            )
            command: list[str | Path] = [BINARY, "--config", config]
            await nodes.enter_async_context(
                run_process(f"n{number}", command, log=folder / f"{number}.log", stop_timeout_s=10)
            )
        yield [*(f"http://127.0.0.1:{port}" for port in ports[6:]), f"nats://127.0.0.1:{ports[3]}"]


async def test_servers_of_the_cluster_that_no_address_reaches_are_counted(tmp_path: Path) -> None:
    """`power` needs all of them; with all of them there is nothing to tell, three copies included."""
    async with asyncio.timeout(DEADLINE_S), three_nodes(tmp_path) as (first, second, third, url):
        asked: dict[str, Any] = {"durability": "power", "nats_url": url}
        async with connect(BusSettings(**asked), "test") as bus:
            [weakness] = await weaknesses(bus, **asked, nats_monitor_url=f"{first},{second},{first}")
            none = await weaknesses(bus, **asked, nats_monitor_url=f"{first},{second}/, {third}")

    assert weakness.startswith("the addresses of NATS_MONITOR_URL reach 2 of the 3 servers of the cluster")
    assert none == []


# --- streams ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [{"durability": "power"}, {"nats_replicas": 3}], ids=["power", "explicit"])
async def test_a_stream_with_fewer_copies_than_asked_for_is_told(tmp_path: Path, asked: dict[str, Any]) -> None:
    """Each, with the command that mends it; it does not stop the start, as it can be mended while services run."""
    async with (
        running(tmp_path, "power") as (server, _),
        connect(BusSettings(nats_url=server.url, **asked), "service") as bus,
    ):
        found = await weaknesses(bus, **asked, nats_monitor_url=server.monitor_url)

    names = {config.name for config in stream_configs(Limits())}
    assert {re.findall(r"^stream (\S+) has 1 of the 3 replicas", weakness)[0] for weakness in found} == names
    assert all(weakness.endswith(f"nats stream edit {weakness.split()[1]} --replicas 3") for weakness in found)


@pytest.mark.parametrize("stream", NEVER_ASYNC)
@pytest.mark.parametrize("level", ["process", "power"])
async def test_a_stream_that_acknowledges_before_it_writes_is_told_at_either_level(
    tmp_path: Path, stream: str, level: DurabilityLevel
) -> None:
    """persist_mode async keeps messages in the server's memory for a while, also where it syncs always."""
    async with asyncio.timeout(DEADLINE_S), run_nats_server(tmp_path, durability=level) as server:
        [config] = [config for config in stream_configs(Limits()) if config.name == stream]
        client = await nats.connect(server.url)
        await client.jetstream().add_stream(config.evolve(persist_mode=PersistMode.ASYNC))
        await client.close()
        async with connect(BusSettings(nats_url=server.url), "service") as bus:
            asked: dict[str, Any] = {"durability": level, "nats_replicas": 1, "nats_monitor_url": server.monitor_url}
            [weakness] = await weaknesses(bus, **asked)

    assert weakness.startswith(f"stream {stream} has persist_mode async: what it acknowledged can be lost when its")


# --- one look after the other ---------------------------------------------------------------------------------


async def test_a_weakness_is_warned_of_once_and_goes_when_it_is_mended(tmp_path: Path, log: LogCapture) -> None:
    """Here a stream that is made anew."""
    async with running(tmp_path, "process") as (_, bus):
        js = bus.client.jetstream()
        [config] = [config for config in stream_configs(Limits()) if config.name == JOBS]
        await js.delete_stream(JOBS)
        await js.add_stream(config.evolve(persist_mode=PersistMode.ASYNC))
        durable = Durability(BusSettings())
        await durable.look(bus)
        await durable.look(bus)
        weak = durable.as_dict()
        await js.delete_stream(JOBS)
        await bus.ensure()
        await durable.look(bus)

    assert (weak["level"], len(weak["weaknesses"])) == ("process", 1)
    assert durable.as_dict() == {"level": "process", "weaknesses": []}
    assert counted("durability_weaknesses") == 0
    assert [(entry["log_level"], entry.get("weakness")) for entry in log.entries] == [
        ("warning", weak["weaknesses"][0]),
        ("info", None),
    ]


async def test_without_the_store_the_last_look_stands(tmp_path: Path) -> None:
    """The caller retries; a weakness does not go because nobody could look."""
    async with running(tmp_path, "process") as (_, bus):
        durable = Durability(BusSettings(**SYNCED))
        await durable.look(bus)
        before = list(durable.weaknesses)
        await bus.client.jetstream().delete_stream(JOBS)
        with pytest.raises(StoreUnavailable):
            await durable.look(bus)

    assert durable.weaknesses == before != []


async def test_the_watch_looks_at_once_and_again_until_it_is_cancelled(
    tmp_path: Path, log: LogCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It outlives a look that the store refuses."""
    monkeypatch.setattr(durability, "RETRY_S", 0.01)
    async with running(tmp_path, "process") as (_, bus), asyncio.TaskGroup() as tasks:
        durable = Durability(BusSettings(nats_replicas=2))
        watching = tasks.create_task(durable.watch(bus, 0.01))
        await until(lambda: len(durable.weaknesses) == len(stream_configs(Limits())))
        await bus.client.jetstream().delete_stream(JOBS)
        await until(lambda: any(entry["event"] == "durability not checked, retrying" for entry in log.entries))
        await bus.client.jetstream().add_stream(stream_configs(Limits())[0])
        durable.weaknesses = []
        await until(lambda: len(durable.weaknesses) == len(stream_configs(Limits())))
        watching.cancel()

    assert watching.cancelled()
