"""The old system's conversations: from its dump, by the command line, to what their owner reads."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.settings import hash_key
from tests.cluster import Cluster, Service, run_cluster
from tests.e2e.test_commands import ROOT, run
from tests.nats_server import NatsServer

pytestmark = [pytest.mark.docker, pytest.mark.timeout(120)]

CATALOG = "servers: {}"
API_KEYS = json.dumps({tenant: hash_key(f"{tenant}-key") for tenant in ("acme", "umbra", "ops")})
DEADLINE_S = 60.0


@pytest.fixture
async def cluster(nats_server: NatsServer, docker_host: str, tmp_path: Path) -> AsyncIterator[Cluster]:
    async with run_cluster(nats_server.url, docker_host, tmp_path, CATALOG) as running:
        yield running


async def start_gateway(cluster: Cluster, **env: str) -> Service:
    return await cluster.start_gateway(API_KEYS=API_KEYS, OPERATORS="ops", **env)


def conversation(name: str, count: int, size: int = 80) -> list[dict[str, Any]]:
    """Messages as the old system has them."""
    return [
        {
            "role": "user" if number % 2 else "assistant",
            "content": f"{name} says {number}: ☀ ".ljust(size, "w"),
            "timestamp": 1_700_000_000_000 + number if number % 3 else "2023-11-14T22:13:20.000Z",
            "metadata": {"model": None, "tokens": [number, 0.5]},
        }
        for number in range(count)
    ]


def line(session: str, messages: list[dict[str, Any]], form: str, **more: Any) -> bytes:
    text = json.dumps(messages, ensure_ascii=False)
    packed = base64.b64encode(gzip.compress(text.encode())).decode()
    value = {"array": messages, "text": text, "gzip": packed}[form]
    return json.dumps({"key": f"conversation:{session}", "value": value, **more}).encode() + b"\n"


def at(gateway: Service, tenant: str = "ops") -> dict[str, str]:
    return {"ORCHESTRATOR_URL": gateway.url, "ORCHESTRATOR_API_KEY": f"{tenant}-key", "NO_COLOR": "1"}


def command(file: Path | str, *more: str) -> tuple[str, ...]:
    return ("client", "conversations", "import", str(file), "--tenant", "acme", *more)


def http(gateway: Service, tenant: str = "acme") -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {tenant}-key"}
    return httpx.AsyncClient(base_url=f"{gateway.url}/v1", headers=headers, trust_env=False)


async def stored(client: httpx.AsyncClient, session: str) -> list[dict[str, Any]]:
    """All messages of a conversation, without their numbers; none where there is no session."""
    found: list[dict[str, Any]] = []
    after: int | None = 0
    while after is not None:
        params = {"after": after, "limit": 1000}
        answer = await client.get(f"/sessions/{session}/conversation", params=params)
        if answer.status_code == 404:
            return []
        page = answer.raise_for_status().json()
        assert page["faults"] == []
        found += page["messages"]
        after = page["after"]
    assert [message.pop("number") for message in found] == list(range(1, len(found) + 1))
    return found


async def test_a_dump_of_mixed_forms_is_imported_once_however_often_and_read_back_as_it_was(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Bad lines are told and cost nothing of the others; the second import, through another gateway, adds nothing."""
    first, second = await start_gateway(cluster), await start_gateway(cluster)
    conversations = {
        "s-array": conversation("a", 700),
        "s-text": conversation("t", 40, 5_000),
        "s-gzip": conversation("g", 1_500),
    }
    lines = [line(session, said, session[2:], ttl=-1) for session, said in conversations.items()]
    lines += [b'{"key": "session:1", "value": "x"}\n', b"{broken\n", line("bad id", [], "array")]
    dump, tail = tmp_path / "dump.jsonl.gz", tmp_path / "tail"
    dump.write_bytes(gzip.compress(b"".join(lines)))
    tail.write_bytes(line("s-text", [*conversations["s-text"], *conversation("later", 2)], "gzip"))

    counted = await run(*command(dump, "--dry-run"), **at(first))
    code, said = await run(*command(dump), **at(first))
    again = await run(*command(dump), **at(second))
    later = await run(*command(tail), **at(second))
    async with http(second) as owner, http(second, "umbra") as stranger:
        read = {session: await stored(owner, session) for session in conversations}
        unseen = await stored(stranger, "s-array")
        opened = await owner.post("/sessions", json={"session": "s-gzip"})

    assert counted[0] == 1
    assert (
        "dry run: would have imported 2,240 messages of 3 conversations; skipped 1 other keys; faults 2" in counted[1]
    )
    assert code == 1, said
    assert "line 5: it is not JSON" in said
    assert "line 6: the session id 'bad id' cannot be one here" in said
    assert "imported 2,240 messages of 3 conversations; skipped 1 other keys; faults 2" in said
    assert "imported 0 messages of 0 conversations; 2,240 messages were there already" in again[1]
    assert (later[0], "imported 2 messages of 1 conversations; 40 messages" in later[1]) == (0, True), later
    conversations["s-text"] += conversation("later", 2)
    assert read == conversations
    assert unseen == []
    assert opened.status_code == 201


async def test_an_import_that_was_killed_is_made_again_and_has_everything_once(
    cluster: Cluster, tmp_path: Path
) -> None:
    """It stands in the middle of the dump, the gateway restarts, and its conversations are complete after it."""
    gateway = await start_gateway(cluster)
    conversations = {f"s{number}": conversation(str(number), 300, 4_000) for number in range(6)}
    lines = [line(session, said, "gzip") for session, said in conversations.items()]
    dump = tmp_path / "dump"
    dump.write_bytes(b"".join(lines))
    argv = (sys.executable, "-m", *command("-"))
    process = await asyncio.create_subprocess_exec(
        *argv, cwd=ROOT, env={**os.environ, **at(gateway)}, stdin=PIPE, stdout=DEVNULL, stderr=DEVNULL
    )
    try:
        assert process.stdin is not None
        process.stdin.write(b"".join(lines[:3]))
        async with asyncio.timeout(DEADLINE_S), http(gateway) as owner:
            while len(await stored(owner, "s2")) < 1:  # in its first batch, or behind it
                await asyncio.sleep(0.01)
    finally:
        process.kill()
        await process.wait()
    os.kill(gateway.child.pid, signal.SIGKILL)
    await gateway.child.wait()
    gateway = await start_gateway(cluster)

    code, said = await run(*command(dump), **at(gateway))
    async with http(gateway) as owner:
        read = {session: await stored(owner, session) for session in conversations}

    assert code == 0, said
    assert "messages were there already" in said
    assert read == conversations


async def test_nothing_of_others_is_touched_and_only_operators_import(cluster: Cluster, tmp_path: Path) -> None:
    """Another tenant's session, and a conversation that has other messages, stay as they are; the rest is imported."""
    gateway = await start_gateway(cluster)
    dump, wrong = tmp_path / "dump", tmp_path / "wrong"
    dump.write_bytes(line("s1", conversation("one", 5), "array") + line("s2", conversation("two", 5), "text"))
    wrong.write_bytes(line("s1", conversation("other", 9), "array") + line("s3", conversation("three", 5), "gzip"))

    refused = await run(*command(dump), **at(gateway, "acme"))
    async with http(gateway) as owner:
        before = await stored(owner, "s1")
    assert (await run(*command(dump), **at(gateway)))[0] == 0
    differs = await run(*command(wrong), **at(gateway))
    taken = await run("client", "conversations", "import", str(dump), "--tenant", "umbra", **at(gateway))
    async with http(gateway) as owner:
        read = [await stored(owner, session) for session in ("s1", "s2", "s3")]

    assert refused[0] == 2
    assert "conversations/import is for the tenants that OPERATORS names" in refused[1]
    assert "Traceback" not in refused[1]
    assert before == []
    assert differs[0] == 1
    assert (
        "line 1: session s1: the conversation of s1 already has 5 messages that are not from this import" in differs[1]
    )
    assert "imported 5 messages of 1 conversations" in differs[1]
    assert taken[0] == 1
    assert "line 2: session s2: session s2 belongs to another tenant than umbra" in taken[1]
    assert read == [conversation(name, 5) for name in ("one", "two", "three")]
