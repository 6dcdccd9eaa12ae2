"""The commands of docs/operations.md, as an operator types them, on a system in which there is something to see."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import pytest

from client import Session, connect
from tests.cluster import DEADLINE_S, run_cluster
from tests.nats_server import NatsServer, credentials
from tests.programs import program

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]

DOCUMENT = Path(__file__).parents[2] / "docs/operations.md"
BLOCK = re.compile(r"^```\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CATALOG = """
servers:
  fixture: {image: mcp-orchestrator/fixture:local}
  kept: {image: mcp-orchestrator/fixture:local, scope: session}
  narrow: {image: mcp-orchestrator/fixture:local, concurrency: {cluster: 1}}
"""
# Of each command what it has to show, as regular expressions; lines and columns of tables are between the words.
SHOWN: dict[str, list[str]] = {
    "nats server check jetstream": [r"^OK JetStream", r"replicas_ok=11\b"],
    "nats stream report": [r"JOBS\W+File\W+4\W+2\b", r"DEAD_LETTERS\W+File\W+0\W+1\b"],
    "nats account info": [r"Streams: 11 of", r"reserved\)"],
    "nats stream subjects JOBS": [r"jobs\.narrow\.SESSION\W+2\b"],
    "nats consumer report JOBS": [r"narrow\W+Pull\W+Explicit\W+3\.00s\W+1\W+0\W+1 / 50%", r"fixture\W", r"chat\W"],
    "orchestrator ps": [r"WORKER +1/10", r"narrow +1 +1\b"],
    "nats consumer info JOBS SERVER": [r"Outstanding Acks: 1 out of maximum 1", r"Unprocessed Messages: 1\b"],
    "nats server check consumer --stream JOBS --consumer SERVER --unprocessed-critical 100": [
        r"^OK JOBS_narrow",
        r"Unprocessed Messages: 1\b",
    ],
    """nats request '$JS.API.DIRECT.GET.JOBS' '{"next_by_subj": "jobs.SERVER.*"}'""": [
        r"Nats-Subject: jobs\.narrow\.SESSION",
        r"Nats-Msg-Id: JOB",
        r"Nats-Time-Stamp: \d{4}-",
    ],
    "nats stream get SESSIONS --last-for sessions.SESSION.JOB": [r"received .+ \(\d", r"started"],
    "orchestrator job SESSION JOB": [r"state +started", r"call +narrow sleep"],
    "nats stream subjects SESSIONS 'sessions.SESSION.>'": [r"sessions\.SESSION\.JOB\W+1\b"],
    "nats subscribe 'live.SESSION.>' --count 3": [r"(live\.SESSION\.\w+.*){3}"],
    "orchestrator events SESSION --all": [r"JOB 1 started"],
    "nats micro ls": [r"worker\W+0\.1\.0\W+MICRO\b"],
    "nats micro ping worker": [r"worker MICRO +rtt="],
    "nats micro info worker": [r"worker: WORKER", r'"used": 1,\s+"limit": 10', r'"server": "narrow"'],
    "nats micro stats worker --json": [r'"worker": "WORKER"', r'"used": 1,\s+"limit": 10', r'"draining": false'],
    "orchestrator top --once": [r"WORKER +\S+ +0\.1\.0 +1 +10\b", r"narrow +1 +1\b"],
    "nats kv ls leases": [r"^SESSION\.kept$"],
    "nats kv ls servers": [r"^fixture$", r"^kept$", r"^narrow$"],
    "nats kv get servers SERVER --raw": [r'"cluster":1\b'],
    "nats kv ls tools": [r"^fixture$", r"^kept$", r"^narrow$"],
    "orchestrator servers": [r"narrow +ready"],
    "nats kv info conversations": [r" Bucket Size: [1-9]", r"Maximum Bucket Size: 2\.0 GiB"],
    "nats kv ls conversations": [r"^SESSION\.0+$", r"^SESSION\.0+1$"],
    "nats stream subjects KV_conversations '$KV.conversations.SESSION.*'": [r"conversations\.SESSION\.0+1\W+1\b"],
    "orchestrator conversation show SESSION": [r'fixture/echo {"text": "hello"} succeeded', r"dead_lettered"],
    "nats stream subjects DEAD_LETTERS": [r"dead\.fixture\.SESSION\W+1\b"],
    "nats stream get DEAD_LETTERS LETTER": [r"DEAD_LETTERS#1 received", r"dead\.fixture\.SESSION", r"break_down"],
    "orchestrator dead-letters list": [r"^1 .+fixture +break_down"],
    "orchestrator dead-letters show LETTER": [r"out of ideas"],
}


@dataclass(frozen=True)
class Operator:
    """Runs the document's commands. `known` is what its capitals, and those of SHOWN, stand for."""

    env: dict[str, str]
    known: dict[str, str]
    session: Session

    def filled(self, text: str) -> str:
        return re.sub(rf"\b({'|'.join(self.known)})\b", lambda name: self.known[name[0]], text)

    async def run(self, command: str) -> tuple[int, str]:
        """Exit code and output. While it waits for what is said next, there is something said."""
        name, *args = shlex.split(self.filled(command))
        argv = [str(program("nats"))] if name == "nats" else [sys.executable, "-m", "client"]
        process = await asyncio.create_subprocess_exec(*argv, *args, env=self.env, stdout=PIPE, stderr=STDOUT)
        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
            output = tasks.create_task(process.communicate())
            while "live." in command and not output.done():
                await self.session.run("fixture", "echo", {"text": "something to see"})
        assert process.returncode is not None
        return process.returncode, output.result()[0].decode(errors="replace")

    async def follow(self, command: str, until: str) -> str:
        """The output of a command that ends with Ctrl-C only, as far as `until`."""
        _, *args = shlex.split(self.filled(command))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "client", *args, env=self.env, stdout=PIPE, stderr=STDOUT
        )
        assert process.stdout is not None
        output = ""
        async with asyncio.timeout(DEADLINE_S):
            try:
                while not re.search(until, output):
                    line = await process.stdout.readline()
                    assert line, output
                    output += line.decode()
            finally:
                process.terminate()
                await process.wait()
        return output


@pytest.fixture
async def operator(nats_server: NatsServer, docker_host: str, tmp_path: Path) -> AsyncIterator[Operator]:
    """One call made, one that runs, one that waits for it, a lease, a conversation, a dead letter."""
    program("nats")
    async with run_cluster(nats_server.url, docker_host, tmp_path, CATALOG) as cluster:
        gateway = await cluster.start_gateway()
        await cluster.start_worker()
        async with connect(gateway.url, record=True) as session:
            assert (await session.run("fixture", "echo", {"text": "hello"})).succeeded
            assert (await session.run("fixture", "break_down", {"words": "out of ideas"})).outcome == "dead_lettered"
            assert (await session.run("kept", "count")).succeeded
            await cluster.until_settled()
            async with (
                aclosing(session.call("narrow", "sleep", {"ms": 600_000})) as running,
                aclosing(session.call("narrow", "echo", {"text": "waits"})) as waiting,
            ):
                async for event in running:
                    if event.type == "started":
                        break
                await anext(waiting)
                [worker] = (await session.status())["workers"]
                env = {
                    **os.environ,
                    **credentials("operator"),
                    "NATS_URL": nats_server.url,
                    "ORCHESTRATOR_URL": gateway.url,
                    "HOME": str(tmp_path),
                    "NO_COLOR": "1",
                    "COLUMNS": "200",
                }
                known = {
                    "SESSION": session.id,
                    "JOB": event.job,
                    "SERVER": "narrow",
                    "LETTER": "1",
                    "WORKER": worker["worker"],
                    "MICRO": worker["id"],
                }
                yield Operator(env, known, session)


def commands() -> list[str]:
    """Of the document's blocks; the one that sets the environment has none."""
    lines = [line for block in BLOCK.findall(DOCUMENT.read_text()) for line in block.splitlines()]
    return [line for line in lines if not line.startswith("export ")]


async def test_every_command_of_the_operators_page_shows_what_the_page_says(operator: Operator) -> None:
    """The table above has each of them, and no other; each ends with 0 and shows the very thing."""
    assert sorted(commands()) == sorted(SHOWN)

    faults = []
    for command, shown in SHOWN.items():
        if command.startswith("orchestrator events"):
            code, output = 0, await operator.follow(command, operator.filled(shown[0]))
        else:
            code, output = await operator.run(command)
        missing = [
            each for each in map(operator.filled, shown) if not re.search(each, output, re.MULTILINE | re.DOTALL)
        ]
        if code or missing:
            faults.append(f"{command}: exit code {code}, not shown: {missing}\n{output}")
    assert not faults, "\n".join(faults)

    too_many = "nats server check consumer --stream JOBS --consumer SERVER --unprocessed-critical 1"
    code, output = await operator.run(too_many)
    assert (code, output.split()[0]) == (2, "CRITICAL"), output
