"""What a user types."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import re
import struct
import sys
import termios
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.cluster import Cluster, Service, run_cluster
from tests.nats_server import NatsServer

pytestmark = [pytest.mark.docker, pytest.mark.timeout(120)]

ROOT = Path(__file__).parent.parent.parent
DEADLINE_S = 100.0
LEAVE_ALTERNATE_SCREEN = "\x1b[?1049l"
CATALOG = """
servers:
  time: {image: mcp-orchestrator/time:local, description: Time zones}
  exec: {kind: exec, image: mcp-orchestrator/exec:local, scope: session}
  broken: {image: no/such:image}
"""


async def run(*argv: str, **env: str) -> tuple[int, str]:
    """Exit code and all output of a command, run in the repository's root."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *argv, cwd=ROOT, env={**os.environ, **env}, stdout=PIPE, stderr=STDOUT
    )
    async with asyncio.timeout(DEADLINE_S):
        output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


@pytest.fixture
async def gateway(nats_server: NatsServer, docker_host: str, tmp_path: Path) -> AsyncIterator[tuple[Cluster, Service]]:
    async with run_cluster(nats_server.url, docker_host, tmp_path, CATALOG) as cluster:
        service = await cluster.start_gateway()
        yield cluster, service


async def test_the_demo_shows_every_part_and_leaves_nothing(docker_host: str) -> None:
    """`make demo`'s main job: exit 0, after it has itself counted containers and processes."""
    code, output = await run("standalone", "demo", DOCKER_HOST=docker_host)

    assert code == 0, output
    for words in ("git_log", "progress", "line 3", "no container and no process is left"):
        assert words in output


async def test_the_command_line_calls_a_tool_and_shows_servers_tools_and_workers(
    gateway: tuple[Cluster, Service],
) -> None:
    """Against any gateway's URL."""
    cluster, service = gateway
    await cluster.start_worker()
    at = {"ORCHESTRATOR_URL": service.url, "NO_COLOR": "1", "COLUMNS": "200"}

    code, output = await run("client", "call", "time", "get_current_time", "timezone=UTC", **at)
    assert (code, '"timezone": "UTC"' in output) == (0, True), output
    code, output = await run("client", "call", "exec", "run", "command=echo one; echo two", **at)
    assert (code, output) == (0, "one\ntwo\n")
    code, output = await run("client", "call", "exec", "run", "command=exit 4", **at)
    assert code == 1, output
    code, output = await run("client", "servers", **at)
    assert code == 0
    assert "Time zones" in output
    assert "no/such:image" in output
    code, output = await run("client", "tools", "time", **at)
    assert (code, "convert_time" in output) == (0, True), output
    code, output = await run("client", "ps", **at)
    assert (code, "time" in output, "w-" in output) == (0, True, True), output
    code, output = await run("client", "top", "--once", **at)
    assert code == 0, output
    assert output.startswith("1 workers, 0/")
    assert "ready" in output


async def test_top_shows_on_a_terminal_what_a_worker_does_until_it_is_left(gateway: tuple[Cluster, Service]) -> None:
    """Drawn again as things change; q gives the terminal back as it was."""
    cluster, service = gateway
    await cluster.start_worker()
    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
    before = termios.tcgetattr(terminal)
    env = {"ORCHESTRATOR_URL": service.url, "TERM": "xterm-256color"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "client", "top", "--every", "0.2"),
        cwd=ROOT,
        env={**os.environ, **env},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            shown = await until_drawn(screen, "1 workers, 0/")
            code, output = await run("client", "call", "time", "get_current_time", "timezone=UTC", **env)
            assert code == 0, output
            shown += await until_drawn(screen, "jobs/s")
            os.write(screen, b"q")
            shown += await until_drawn(screen, LEAVE_ALTERNATE_SCREEN)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    after = termios.tcgetattr(terminal)
    os.close(terminal)
    os.close(screen)

    for words in ("w-", "time", "exec", "ready", "serving"):
        assert words in shown, shown
    assert after == before


async def until_drawn(screen: int, words: str) -> str:
    """All that comes until these words have."""
    got = ""
    while words not in got:
        got += (await asyncio.to_thread(os.read, screen, 65_536)).decode(errors="replace")
    return got


async def test_output_of_any_size_is_saved_by_the_call_or_later(
    gateway: tuple[Cluster, Service], tmp_path: Path
) -> None:
    """Byte for byte, and stderr apart from it."""
    cluster, service = gateway
    await cluster.start_worker()
    at = {"ORCHESTRATOR_URL": service.url, "NO_COLOR": "1", "COLUMNS": "200"}
    wanted = b"".join(b"%d\n" % number for number in range(1, 2_000_001))
    now, later = tmp_path / "now", tmp_path / "later"
    write = "command=seq 2000000; printf oh >&2"

    code, output = await run("client", "call", "exec", "run", write, "--save", str(now), **at)
    assert code == 0, output
    assert now.read_bytes() == wanted

    code, session = await run("client", "open", **at)
    code, output = await run("client", "call", "exec", "run", write, "--session", session.strip(), **at)
    assert code == 0, output[-500:]
    [uri] = re.findall(r"stdout is kept as (/v1/sessions/\S+)", output)
    command = ("client", "artifact", session.strip(), uri.rpartition("/")[2])
    code, output = await run(*command, "--save", str(later), **at)
    assert code == 0, output
    assert later.read_bytes() == wanted


async def test_a_file_is_brought_to_a_tool_listed_and_taken_home(
    gateway: tuple[Cluster, Service], tmp_path: Path
) -> None:
    """By three commands in one session; what is not there is said in one sentence."""
    cluster, service = gateway
    await cluster.start_worker()
    at = {"ORCHESTRATOR_URL": service.url, "NO_COLOR": "1", "COLUMNS": "200"}
    (tmp_path / "numbers").write_bytes(b"3\n1\n2\n")
    session = (await run("client", "open", **at))[1].strip()
    where = (session, "exec")

    code, output = await run("client", "files", "put", *where, str(tmp_path / "numbers"), "in/numbers", **at)
    assert (code, output) == (0, "in/numbers: 6 bytes\n")
    sort = "command=sort $FILES_DIR/in/numbers >$FILES_DIR/sorted"
    code, output = await run("client", "call", "--session", session, "exec", "run", sort, **at)
    assert code == 0, output
    code, output = await run("client", "files", "list", *where, **at)
    assert (code, "in/numbers" in output, "sorted" in output) == (0, True, True), output
    code, output = await run("client", "files", "get", *where, "sorted", "--save", str(tmp_path / "sorted"), **at)
    assert (code, (tmp_path / "sorted").read_bytes()) == (0, b"1\n2\n3\n"), output
    code, output = await run("client", "files", "get", *where, "missing", **at)
    assert code != 0
    assert "missing" in output
    assert len(output.splitlines()) == 1, output


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["call", "nosuch", "tool"], 2, "unknown server 'nosuch'"),
        (["call", "time", "nosuch"], 2, "has no tool 'nosuch'"),
        (["call", "time", "get_current_time", "timezone:=5"], 2, "$.timezone"),
        (["call", "broken", "tool"], 2, "does not exist"),
        (["job", "nosuch", "nosuch"], 2, "unknown session"),
    ],
)
async def test_a_refused_command_says_why_in_one_sentence(
    gateway: tuple[Cluster, Service], words: list[str], code: int, said: str
) -> None:
    """Exit code 2 and the gateway's own words, no traceback."""
    cluster, service = gateway
    await cluster.start_worker()
    got, output = await run("client", *words, ORCHESTRATOR_URL=service.url, NO_COLOR="1", COLUMNS="500")

    assert got == code, output
    assert said in output
    assert "Traceback" not in output


@pytest.mark.parametrize("service", ["gateway", "worker"])
async def test_a_service_that_asks_for_more_replicas_than_there_can_be_says_so_and_ends(
    nats_server: NatsServer, docker_host: str, service: str
) -> None:
    """Exit code 3, in one sentence that says what to set."""
    env = {"NATS_URL": nats_server.url, "DURABILITY": "power", "PORT": "0", "HEALTH_PORT": "0"}
    code, output = await run(service, DOCKER_HOST=docker_host, LOG_FORMAT="json", **env)

    assert code == 3, output
    assert "set NATS_REPLICAS=1" in output
    assert "Traceback" not in output


async def test_a_gateway_that_is_not_there_is_said_plainly() -> None:
    """Exit code 3."""
    code, output = await run("client", "servers", ORCHESTRATOR_URL="http://127.0.0.1:1", NO_COLOR="1")

    assert code == 3, output
    assert "Traceback" not in output
