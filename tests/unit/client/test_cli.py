"""The command line as a user runs it: a process of its own, against a gateway double."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.unit.client.gateway_double import SESSION, GatewayDouble, HeldRequest, Store, run_gateway

DEADLINE_S = 20.0

TOOLS = [
    {
        "name": "now",
        "inputSchema": {
            "properties": {"timezone": {"type": "string"}, "digits": {"type": "integer"}},
            "required": ["timezone"],
        },
        "annotations": {"readOnlyHint": True, "idempotentHint": True},
    },
    {"name": "wipe", "inputSchema": {"properties": {}}},
]


@dataclass
class Ended:
    code: int
    out: str
    err: str


@pytest.fixture
async def store() -> Store:
    return Store()


@pytest.fixture
async def gateway(store: Store) -> AsyncIterator[GatewayDouble]:
    async with run_gateway(store) as double:
        double.answers["tools/list"] = {"server": "time", "tools": TOOLS, "serverInfo": {}}
        yield double


@asynccontextmanager
async def running(
    gateway_url: str, *command: str, stderr: int = PIPE, stdin: int | None = None
) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "client",
        *command,
        stdin=stdin,
        stdout=PIPE,
        stderr=stderr,
        env={**os.environ, "ORCHESTRATOR_URL": gateway_url, "PYTHONUNBUFFERED": "1"},
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def ended(process: Process) -> Ended:
    out, err = await process.communicate()
    assert process.returncode is not None
    assert "Traceback" not in err.decode()
    return Ended(process.returncode, out.decode(), err.decode())


async def run(gateway: GatewayDouble, *command: str) -> Ended:
    async with running(gateway.url, *command) as process:
        return await ended(process)


async def accept(gateway: GatewayDouble) -> HeldRequest:
    request = await gateway.held.get()
    queued = await gateway.store.emit("job1", "queued", server=request.params["server"], tool=request.params["name"])
    await request.answer(job="job1", seq=queued["seq"])
    return request


def text(said: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": said}]}


async def test_a_call_prints_the_answer_and_exits_with_zero(gateway: GatewayDouble, store: Store) -> None:
    """Arguments get the types of the tool's schema, the answer's text goes to stdout, nothing else does."""
    async with running(gateway.url, "call", "time", "now", "timezone=UTC", "digits=2") as process:
        request = await accept(gateway)
        await store.emit("job1", "result", outcome="succeeded", result=text("noon"))
        got = await ended(process)

    assert request.params["arguments"] == {"timezone": "UTC", "digits": 2}
    assert (got.code, got.out, got.err) == (0, "noon\n", "")
    assert gateway.requests[-1] == "session/close"


async def test_output_goes_to_the_stream_it_came_from_and_is_not_repeated(gateway: GatewayDouble, store: Store) -> None:
    """A command's answer repeats the end of what was streamed."""
    async with running(gateway.url, "call", "exec", "run", "--args", '{"command": "ls"}') as process:
        await accept(gateway)
        await store.emit("job1", "output", stream="stdout", text="one\n")
        await store.emit("job1", "output", stream="stderr", text="two\n")
        await store.emit("job1", "result", outcome="succeeded", result=text("one\n"))
        got = await ended(process)

    assert (got.code, got.out, got.err) == (0, "one\n", "two\n")


async def test_output_is_shown_while_the_job_runs(gateway: GatewayDouble, store: Store) -> None:
    """Nothing waits for the end."""
    async with running(gateway.url, "call", "exec", "run") as process:
        await accept(gateway)
        await store.emit("job1", "output", stream="stdout", text="early\n")
        assert process.stdout is not None
        assert await process.stdout.readline() == b"early\n"
        await store.emit("job1", "result", outcome="succeeded")
        assert (await ended(process)).code == 0


async def test_a_failed_job_is_one_sentence_and_exit_code_one(gateway: GatewayDouble, store: Store) -> None:
    """Errors of a job say what happened."""
    async with running(gateway.url, "call", "git", "log") as process:
        await accept(gateway)
        error = {"type": "server_gone", "message": "the server ended with exit code 3", "retryable": True}
        await store.emit("job1", "result", outcome="failed", error=error)
        got = await ended(process)

    assert got.code == 1
    assert got.err == "orchestrator: git log failed: the server ended with exit code 3\n"


async def test_an_answer_that_is_an_error_goes_to_stderr(gateway: GatewayDouble, store: Store) -> None:
    """stdout stays clean for pipes."""
    async with running(gateway.url, "call", "time", "now") as process:
        await accept(gateway)
        await store.emit("job1", "result", outcome="failed", result={**text("no such zone"), "isError": True})
        got = await ended(process)

    assert (got.code, got.out) == (1, "")
    assert got.err == "no such zone\norchestrator: time now failed\n"


async def test_a_refused_call_is_exit_code_two(gateway: GatewayDouble) -> None:
    """The gateway's own sentence is shown."""
    async with running(gateway.url, "call", "nope", "now") as process:
        request = await gateway.held.get()
        await request.refuse(-32602, "unknown_server", "unknown server 'nope'; the catalog has: time")
        got = await ended(process)

    assert (got.code, got.err) == (2, "orchestrator: unknown server 'nope'; the catalog has: time\n")


async def test_an_argument_of_the_wrong_type_is_exit_code_two(gateway: GatewayDouble) -> None:
    """It is found before anything is called."""
    got = await run(gateway, "call", "time", "now", "digits=many")

    assert (got.code, got.err) == (2, "orchestrator: digits: 'many' is not integer\n")
    assert "tools/call" not in gateway.requests


async def test_an_absent_gateway_is_exit_code_three() -> None:
    """The sentence says where it looked and how to change that."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with running(f"http://127.0.0.1:{unused.getsockname()[1]}", "servers") as process:
            got = await ended(process)

    assert got.code == 3
    assert got.err.startswith("orchestrator: no gateway answers at ws://127.0.0.1")
    assert got.err.endswith("connection refused; --url or ORCHESTRATOR_URL says where it is\n")


async def test_ctrl_c_cancels_the_job_and_says_how_it_ended(gateway: GatewayDouble, store: Store) -> None:
    """The command waits for the proof that the tool has stopped."""
    gateway.hold.add("job/cancel")
    async with running(gateway.url, "call", "exec", "run") as process:
        await accept(gateway)
        await store.emit("job1", "output", stream="stdout", text="working\n")
        assert process.stdout is not None
        await process.stdout.readline()
        process.send_signal(signal.SIGINT)
        request = await gateway.held.get()
        assert request.params == {"session": SESSION, "job": "job1"}
        await request.answer(job="job1", state="started")
        await store.emit("job1", "result", outcome="cancelled")
        got = await ended(process)

    assert got.code == 1
    assert got.err.splitlines() == [
        "orchestrator: cancelling; Ctrl-C again leaves without waiting for the end",
        "orchestrator: exec run was cancelled, and nothing of it runs any more",
    ]


async def test_a_second_ctrl_c_leaves_at_once(gateway: GatewayDouble, store: Store) -> None:
    """Even if the tool never stops."""
    gateway.answers["job/cancel"] = {"job": "job1", "state": "started"}
    async with running(gateway.url, "call", "exec", "run") as process:
        await accept(gateway)
        await store.emit("job1", "output", stream="stdout", text="working\n")
        assert process.stdout is not None
        assert process.stderr is not None
        await process.stdout.readline()
        process.send_signal(signal.SIGINT)
        await process.stderr.readline()
        process.send_signal(signal.SIGINT)
        got = await ended(process)

    assert got.code == 130


async def test_json_prints_each_event_as_a_line(gateway: GatewayDouble, store: Store) -> None:
    """For programs: nothing is left out or reworded."""
    async with running(gateway.url, "call", "time", "now", "--json") as process:
        await accept(gateway)
        await store.emit("job1", "result", outcome="succeeded", result=text("noon"))
        got = await ended(process)

    events = [json.loads(line) for line in got.out.splitlines()]
    assert [event["type"] for event in events] == ["queued", "result"]
    assert events[1]["data"]["result"] == text("noon")


async def test_progress_is_a_bar_on_a_terminal(gateway: GatewayDouble, store: Store) -> None:
    """It is drawn on stderr, so that stdout can be piped, and taken away at the end."""
    ours, theirs = pty.openpty()
    try:
        async with running(gateway.url, "call", "everything", "long", stderr=theirs) as process:
            await accept(gateway)
            await store.emit("job1", "progress", progress=1, total=4, message="step one")
            await store.emit("job1", "result", outcome="succeeded", result=text("done"))
            out, _ = await process.communicate()
        shown = os.read(ours, 65536).decode()
    finally:
        os.close(ours)
        os.close(theirs)

    assert out == b"done\n"
    assert "step one" in shown
    assert "1/4" in shown


async def test_a_waiting_call_says_how_many_are_ahead(gateway: GatewayDouble, store: Store) -> None:
    """Once it has started, a report that came late says nothing any more; the tool's own progress does."""
    ahead = {"progress": 0, "total": 3, "position": 3, "message": "3 jobs ahead in the queue of time"}
    late = {"progress": 2, "total": 3, "position": 1, "message": "1 job ahead in the queue of time"}
    async with running(gateway.url, "call", "time", "now") as process:
        await accept(gateway)
        await store.emit("job1", "progress", attempt=0, **ahead)
        await store.emit("job1", "started", worker="w-1", container="c-1", warm=True)
        await store.emit("job1", "progress", attempt=0, **late)
        await store.emit("job1", "progress", progress=1, total=4, message="step one")
        await store.emit("job1", "result", outcome="succeeded", result=text("noon"))
        got = await ended(process)

    assert got.err.splitlines() == ["time now: 3 jobs ahead in the queue of time", "time now: 1/4 step one"]
    assert got.out == "noon\n"


async def test_a_waiting_call_on_a_terminal_says_how_many_are_ahead(gateway: GatewayDouble, store: Store) -> None:
    """In words: the bar is the tool's own."""
    ahead = {"progress": 1, "total": 3, "position": 2, "message": "2 jobs ahead in the queue of time"}
    ours, theirs = pty.openpty()
    try:
        async with running(gateway.url, "call", "time", "now", stderr=theirs) as process:
            await accept(gateway)
            await store.emit("job1", "progress", attempt=0, **ahead)
            await store.emit("job1", "result", outcome="succeeded", result=text("noon"))
            out, _ = await process.communicate()
        shown = os.read(ours, 65536).decode()
    finally:
        os.close(ours)
        os.close(theirs)

    assert out == b"noon\n"
    assert "2 jobs ahead in the queue of time" in shown
    assert "1/3" not in shown


async def test_servers_are_a_table(gateway: GatewayDouble) -> None:
    """With the reason where one is not ready."""
    gateway.answers["servers/list"] = {
        "servers": [
            {
                "name": "time",
                "kind": "mcp",
                "description": "Clocks",
                "scope": "shared",
                "status": "ready",
                "reason": "",
            },
            {
                "name": "git",
                "kind": "mcp",
                "description": "",
                "scope": "session",
                "status": "failed",
                "reason": "no image",
            },
        ]
    }

    got = await run(gateway, "servers")

    rows = [line.split() for line in got.out.splitlines()]
    assert rows[1] == ["time", "ready", "shared", "mcp", "Clocks"]
    assert rows[2] == ["git", "failed", "session", "mcp", "no", "image"]


async def test_tools_show_arguments_and_hints(gateway: GatewayDouble) -> None:
    """Optional arguments stand in brackets; a tool without hints may destroy, as MCP has it."""
    got = await run(gateway, "tools", "time")

    assert got.out.splitlines()[1].split("  ")[0].strip() == "now"
    assert "timezone: string [digits: integer]" in got.out
    assert "read-only, idempotent" in got.out
    assert got.out.splitlines()[2].split() == ["wipe", "destructive"]


async def test_ps_says_when_there_is_no_worker(gateway: GatewayDouble) -> None:
    """The commonest reason why a job waits."""
    gateway.answers["status/get"] = {
        "gateway": {"connected": True, "reason": "", "draining": False, "connections": 1, "sessions": 1},
        "workers": [],
        "queues": [{"server": "time", "waiting": 3, "running": 0}],
    }

    got = await run(gateway, "ps")

    assert "no worker answers: jobs wait until one comes" in got.out
    assert got.out.splitlines()[-1].split() == ["time", "3", "0"]


async def test_ps_says_in_what_the_store_is_weaker_than_asked_for(gateway: GatewayDouble) -> None:
    """In the gateway's words, to the letter."""
    weakness = "the monitoring address http://[::1]:8222 does not answer"
    gateway.answers["status/get"] = {
        "gateway": {
            "connected": True,
            "reason": "",
            "draining": False,
            "connections": 1,
            "sessions": 1,
            "durability": {"level": "power", "weaknesses": [weakness]},
        },
        "workers": [],
        "queues": [],
    }

    got = await run(gateway, "ps")

    assert f"the store is weaker than asked for: {weakness}" in " ".join(got.out.split())


async def test_ps_shows_workers_pools_and_queues(gateway: GatewayDouble) -> None:
    """What an operator looks at first."""
    pool = {"server": "time", "scope": "shared", "ready": 1, "busy": 0, "starting": 0, "limit": 4, "failure": ""}
    worker = {
        "id": "X",
        "worker": "w-1",
        "slots": {"used": 2, "limit": 10},
        "pools": [pool | {"leases": 0}],
        "draining": False,
    }
    gateway.answers["status/get"] = {
        "gateway": {"connected": True, "reason": "", "draining": False, "connections": 1, "sessions": 1},
        "workers": [worker],
        "queues": [],
    }

    lines = [line.split() for line in (await run(gateway, "ps")).out.splitlines()]

    assert ["w-1", "2/10", "serving"] in lines
    assert ["time", "w-1", "shared", "1", "0", "0", "4", "0"] in lines


async def test_events_of_a_session_are_followed(gateway: GatewayDouble, store: Store) -> None:
    """From the oldest with --all; it goes on until Ctrl-C."""
    store.add("job1", "queued", server="time", tool="now")
    async with running(gateway.url, "events", SESSION, "--all") as process:
        assert process.stdout is not None
        assert (await process.stdout.readline()).split()[1:] == [b"job1", b"1", b"queued", b"time", b"now"]
        await store.emit("job1", "progress", attempt=0, progress=1, total=2, position=1, message="1 job ahead")
        assert (await process.stdout.readline()).split()[1:] == [b"job1", b"0", b"progress", b"1", b"job", b"ahead"]
        process.send_signal(signal.SIGINT)
        assert (await ended(process)).code == 130


async def test_a_job_is_shown_with_how_it_ended(gateway: GatewayDouble) -> None:
    """State, outcome and timings."""
    gateway.answers["job/get"] = {
        "job": "job1",
        "state": "result",
        "attempt": 1,
        "seq": 5,
        "server": "time",
        "tool": "now",
        "outcome": "timed_out",
        "error": {"type": "job_timeout", "message": "it ran longer than 5 s"},
        "timings": {"queue_ms": 3},
    }

    got = await run(gateway, "job", SESSION, "job1")

    assert "ran out of time: it ran longer than 5 s" in got.out
    assert "3 ms" in got.out


async def test_cancel_waits_for_the_end(gateway: GatewayDouble, store: Store) -> None:
    """And says what it was."""
    store.add("job1", "queued", server="exec", tool="run")
    store.add("job1", "result", outcome="cancelled")
    gateway.answers["job/cancel"] = {"job": "job1", "state": "result"}

    got = await run(gateway, "cancel", SESSION, "job1")

    assert (got.code, got.out) == (0, "cancelled\n")


async def test_a_session_can_be_opened_and_closed_by_hand(gateway: GatewayDouble) -> None:
    """For several calls that share files: open prints the id that `call --session` takes."""
    opened = await run(gateway, "open")
    closed = await run(gateway, "close", SESSION)

    assert opened.out == f"{SESSION}\n"
    assert closed.code == 0
    assert gateway.requests == ["session/open", "session/open", "session/close"]


async def test_a_reader_that_leaves_is_no_error_to_shout_about(gateway: GatewayDouble, store: Store) -> None:
    """`orchestrator ... | head` ends quietly."""
    async with running(gateway.url, "call", "exec", "run") as process:
        await accept(gateway)
        assert process.stdout is not None
        process.stdout._transport.close()  # type: ignore[attr-defined]
        await store.emit("job1", "output", stream="stdout", text="unread\n")
        await process.wait()
        assert process.stderr is not None
        assert await process.stderr.read() == b""

    assert process.returncode == 141
