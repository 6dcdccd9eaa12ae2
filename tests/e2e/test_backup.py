"""k8s/base/nats/backup.sh and restore.sh, as the CronJob and an operator run them."""

from __future__ import annotations

import asyncio
import os
import re
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import pytest
from nats.js.api import StreamInfo

from client import connect
from common.bus import connect as connect_to_bus
from common.settings import BusSettings
from tests.cluster import DEADLINE_S, run_cluster
from tests.nats_cluster import run_nats_cluster
from tests.nats_server import AUTHORIZATION, NatsServer, credentials, run_nats_server
from tests.programs import program

pytestmark = pytest.mark.timeout(180)

SCRIPTS = AUTHORIZATION.parent
CATALOG = """
servers:
  fixture: {image: mcp-orchestrator/fixture:local}
"""
DEAD_LETTERS = "DEAD_LETTERS"
AN_HOUR_AND_A_BIT_S = 3700


@dataclass(frozen=True)
class Scripts:
    """Run by a shell of POSIX, as in the image."""

    nats_url: str
    backups: Path

    async def run(self, script: str, *args: str | Path, **env: str) -> tuple[int, str]:
        path = f"{program('nats').parent}:{os.environ['PATH']}"
        given = {"NATS_URL": self.nats_url, **credentials("operator"), "HOME": str(self.backups), "PATH": path, **env}
        process = await asyncio.create_subprocess_exec(
            "sh", SCRIPTS / script, *args, env={"BACKUPS": str(self.backups), **given}, stdout=PIPE, stderr=STDOUT
        )
        async with asyncio.timeout(DEADLINE_S):
            output, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, output.decode()

    async def backup(self) -> Path:
        code, output = await self.run("backup.sh")
        assert code == 0, output
        return max(self.folders())

    def folders(self) -> list[Path]:
        return [path for path in self.backups.iterdir() if not path.name.startswith(".")]


@pytest.fixture
async def scripts(nats_server: NatsServer, tmp_path: Path) -> Scripts:
    backups = tmp_path / "backups"
    backups.mkdir()
    return Scripts(nats_server.url, backups)


@pytest.fixture
async def other_server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """One that has nothing yet."""
    folder = tmp_path / "other-nats"
    folder.mkdir()
    async with run_nats_server(folder) as server:
        yield server
    assert server.violations() == []


async def stored(url: str) -> dict[str, int]:
    """How many messages each stream has; there is none that is missing here."""
    return {each.config.name or "": each.state.messages for each in await streams(url)}


async def streams(url: str) -> list[StreamInfo]:
    async with connect_to_bus(BusSettings(nats_url=url), "test") as bus:
        return await bus.client.jetstream().streams_info()


@pytest.mark.docker
async def test_a_system_whose_store_was_restored_goes_on_where_the_backup_was_made(
    scripts: Scripts, other_server: NatsServer, nats_server: NatsServer, docker_host: str, tmp_path: Path
) -> None:
    """On an empty server: the catalog, the conversation and the dead letter are there, the job that waited runs. The
    numbering of events is another one, so that no client takes it for that of before."""
    async with run_cluster(nats_server.url, docker_host, tmp_path, CATALOG) as before:
        gateway = await before.start_gateway()
        worker = await before.start_worker()
        async with connect(gateway.url, record=True, keep=True) as session:
            assert (await session.run("fixture", "echo", {"text": "hello"})).succeeded
            assert (await session.run("fixture", "break_down", {"words": "no"})).outcome == "dead_lettered"
            await before.until_settled()
            await worker.child.stop(DEADLINE_S)
            async with aclosing(session.call("fixture", "echo", {"text": "waited"})) as events:
                waiting = (await anext(events)).job
                folder = await scripts.backup()
        told_before = before.bus.epoch
    await nats_server.stop()

    restored = Scripts(other_server.url, scripts.backups)
    code, output = await restored.run("restore.sh", folder)
    assert code == 0, output
    assert re.search(r"^restored JOBS: 1 messages$", output, re.MULTILINE), output
    assert re.search(r"^restored KV_servers: 1 messages$", output, re.MULTILINE), output

    async with run_cluster(other_server.url, docker_host, tmp_path, None) as after:
        gateway = await after.start_gateway()
        await after.start_worker()
        async with connect(gateway.url, session=session.id) as resumed, aclosing(resumed.follow(waiting)) as events:
            async for event in events:
                if event.terminal:
                    break
            await after.until_settled()
            told = [message async for message in resumed.conversation.messages()]
            [letter] = await resumed.dead_letters.list()

        assert event.data["outcome"] == "succeeded"
        assert all(isinstance(each, dict) for each in told), told
        assert [(each["tool"], each["outcome"]) for each in told if isinstance(each, dict)] == [
            ("echo", "succeeded"),
            ("break_down", "dead_lettered"),
            ("echo", "succeeded"),
        ]
        assert (letter["server"], letter["tool"], letter["session"]) == ("fixture", "break_down", session.id)
        assert after.bus.epoch != told_before


async def test_streams_that_exist_are_replaced_only_when_told(scripts: Scripts) -> None:
    """Without --replace nothing is changed, and the names are told."""
    await stored(scripts.nats_url)
    async with connect_to_bus(BusSettings(nats_url=scripts.nats_url), "test") as bus:
        await bus.put("servers", "kept", b"{}")
        folder = await scripts.backup()
        await bus.put("servers", "added", b"{}")

    code, output = await scripts.run("restore.sh", folder)
    assert code == 1, output
    assert "Nothing was changed" in output
    assert "KV_servers" in output
    assert (await stored(scripts.nats_url))["KV_servers"] == 2

    code, output = await scripts.run("restore.sh", "--replace", folder, NATS_REPLICAS="1")
    assert code == 0, output
    assert "removed KV_servers" in output
    assert (await stored(scripts.nats_url))["KV_servers"] == 1


async def test_a_backup_of_three_servers_is_restored_to_one_with_one_copy(
    scripts: Scripts, other_server: NatsServer, tmp_path: Path
) -> None:
    """The way from a cluster to one machine: without the number of copies the single server refuses it."""
    async with run_nats_cluster(tmp_path) as cluster:
        async with connect_to_bus(BusSettings(nats_url=cluster.url, nats_replicas=3), "test") as bus:
            await bus.put("servers", "kept", b"{}")
        folder = await Scripts(cluster.url, scripts.backups).backup()

    alone = Scripts(other_server.url, scripts.backups)
    code, output = await alone.run("restore.sh", folder)
    assert code != 0, output
    code, output = await alone.run("restore.sh", "--replace", folder, NATS_REPLICAS="1")
    assert code == 0, output

    assert (await stored(other_server.url))["KV_servers"] == 1
    assert {each.config.num_replicas for each in await streams(other_server.url)} == {1}


async def test_a_folder_that_is_no_whole_backup_is_refused_before_anything_is_removed(scripts: Scripts) -> None:
    """With --replace too."""
    before = await stored(scripts.nats_url)
    whole = await scripts.backup()
    part = whole.rename(f"{whole}.part")
    empty = scripts.backups / "empty"
    empty.mkdir()

    for folder in (part, empty, scripts.backups / "missing"):
        code, output = await scripts.run("restore.sh", "--replace", folder)
        assert code == 2, output
        assert "Nothing was changed" in output
    assert (await stored(scripts.nats_url)).keys() == before.keys()


async def test_a_backup_that_fails_leaves_nothing_and_what_was_killed_is_removed_later(scripts: Scripts) -> None:
    """A server without streams has nothing to back up. A part that another run writes just now stays."""
    killed, running = scripts.backups / "20200101T000000Z.part", scripts.backups / "20200102T000000Z.part"
    killed.mkdir()
    running.mkdir()
    long_ago = killed.stat().st_mtime - AN_HOUR_AND_A_BIT_S
    os.utime(killed, (long_ago, long_ago))

    code, output = await scripts.run("backup.sh")

    assert code != 0, output
    assert scripts.folders() == [running]


async def test_the_newest_seven_backups_are_kept(scripts: Scripts) -> None:
    """The oldest goes when an eighth is whole."""
    await stored(scripts.nats_url)
    old = [scripts.backups / f"2020010{day}T000000Z" for day in range(1, 8)]
    for folder in old:
        folder.mkdir()

    newest = await scripts.backup()

    assert sorted(scripts.folders()) == [*old[1:], newest]
    assert (newest / DEAD_LETTERS / "backup.json").exists()


@pytest.mark.parametrize("script", ["backup.sh", "restore.sh"])
def test_no_password_is_an_argument_of_a_process(script: str) -> None:
    """The CLI takes it from its environment."""
    lines = (SCRIPTS / script).read_text().splitlines()
    code = [line for line in lines if not line.startswith("#")]
    assert not [line for line in code if "PASSWORD" in line or "--password" in line or "--user" in line]
