"""Files to a session's container and back, through every part: client, gateway, store, worker, engine."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import pytest

from client import ClientError, Session, connect
from client.errors import JobFailed, Refused
from tests.cluster import run_cluster
from tests.nats_server import NatsServer

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]

CATALOG = """
servers:
  shell: {kind: exec, image: mcp-orchestrator/time:local, scope: session, pool: {min: 1, max: 2}}
  shared: {image: mcp-orchestrator/time:local, pool: {min: 1, max: 1}}
"""
MIB = 1024 * 1024


@pytest.fixture
async def session(nats_server: NatsServer, docker_host: str, tmp_path: Path) -> AsyncIterator[Session]:
    async with run_cluster(nats_server.url, docker_host, tmp_path, CATALOG) as cluster:
        gateway = await cluster.start_gateway(MAX_UPLOAD_BYTES=str(40 * MIB))
        await cluster.start_worker()
        async with connect(gateway.url) as opened:
            yield opened


async def got(session: Session, path: str) -> bytes:
    return b"".join([piece async for piece in session.files("shell").get(path)])


async def pieces(content: bytes) -> AsyncGenerator[bytes, None]:
    for at in range(0, len(content), 100_000):
        yield content[at : at + 100_000]


async def test_a_tool_finds_what_was_brought_and_what_it_makes_is_taken_home(session: Session) -> None:
    """Large and binary both ways; the call in between runs in the same container."""
    files = session.files("shell")
    content = os.urandom(20 * MIB + 3)
    put = await files.put("in/data.bin", pieces(content))
    made = await session.run(
        "shell", "run", {"command": "cd $FILES_DIR && sha256sum in/data.bin && rev /etc/hostname >out"}
    )
    listed = await files.list()

    assert put == {"path": "in/data.bin", "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert hashlib.sha256(content).hexdigest() in made.text
    assert {entry["name"] for entry in listed["entries"]} >= {"in", "in/data.bin", "out"}
    assert await got(session, "in/data.bin") == content
    assert (await got(session, "out")).endswith(b"\n")


async def test_nothing_leaves_the_files_directory(session: Session) -> None:
    """Neither by its name nor by a link; each refusal says why."""
    await session.run("shell", "run", {"command": "ln -s /etc/passwd $FILES_DIR/link && ln -s / $FILES_DIR/root"})
    files = session.files("shell")
    refusals = []
    for path in ("../etc/passwd", "/etc/passwd", "a/../../b", ""):
        with pytest.raises(Refused) as refused:
            await got(session, path)
        refusals.append(refused.value.type)
    failures = []
    for path in ("link", "root/etc/passwd", "missing"):
        with pytest.raises(JobFailed) as failed:
            await got(session, path)
        failures.append(failed.value.error["type"])
    with pytest.raises(JobFailed):
        await files.put("root/tmp/x", b"through a link")

    assert refusals == ["invalid_params"] * 4
    assert failures[2] == "no_such_file"
    assert set(failures[:2]) <= {"not_a_file", "not_a_folder"}


async def test_a_file_that_is_too_large_is_refused_and_costs_nothing(session: Session) -> None:
    """At the gateway by its bound, whatever is announced; the session goes on."""
    files = session.files("shell")
    with pytest.raises(ClientError) as refused:
        await files.put("large", pieces(bytes(41 * MIB)))
    await files.put("small", b"fine")

    assert isinstance(refused.value, Refused)
    assert refused.value.type == "payload_too_large"
    assert await got(session, "small") == b"fine"


async def test_a_server_whose_containers_belong_to_no_session_has_no_files(session: Session) -> None:
    """It says which scope has."""
    with pytest.raises(Refused) as refused:
        await session.files("shared").list()

    assert refused.value.type == "files_unsupported"
