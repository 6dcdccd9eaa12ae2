"""`orchestrator chat` as a user runs it: a process of its own, against a gateway double."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.unit.client.gateway_double import SESSION, GatewayDouble, HeldRequest, Store, run_gateway
from tests.unit.client.test_cli import Ended, ended, running, text

CALL = {"job": "call1", "server": "time", "tool": "now", "arguments": {"zone": "UTC"}}
ARGV = [sys.executable, "-m", "client", "chat"]
USED = {"input_tokens": 1, "output_tokens": 1}


@pytest.fixture
async def store() -> Store:
    return Store()


@pytest.fixture
async def gateway(store: Store) -> AsyncIterator[GatewayDouble]:
    async with run_gateway(store) as double:
        double.hold |= {"chat/send", "chat/approve", "chat/deny", "job/cancel", "job/get"}
        schema = {"properties": {"digits": {"type": "integer"}}}
        double.answers["tools/list"] = {"server": "time", "tools": [{"name": "now", "inputSchema": schema}]}
        yield double


@asynccontextmanager
async def chatting(gateway: GatewayDouble, *options: str) -> AsyncIterator[Process]:
    async with running(gateway.url, "chat", *options, stdin=PIPE) as process:
        yield process


def say(process: Process, *lines: str) -> None:
    assert process.stdin is not None
    process.stdin.write("".join(f"{line}\n" for line in lines).encode())


async def leave(process: Process) -> Ended:
    assert process.stdin is not None
    process.stdin.close()
    return await ended(process)


async def accept(gateway: GatewayDouble, job: str) -> HeldRequest:
    request = await gateway.held.get()
    server, tool = request.params.get("server", "chat"), request.params.get("name", "send")
    queued = await gateway.store.emit(job, "queued", attempt=0, server=server, tool=tool)
    await request.answer(job=job, seq=queued["seq"])
    return request


async def step(store: Store, **call: Any) -> None:
    await store.emit("turn1", "step", step=1, calls=[{**CALL, **call}], usage=USED)


async def answer(store: Store, said: str) -> None:
    await store.emit("turn1", "output", stream="text", text=said)
    await store.emit("turn1", "result", outcome="succeeded", result=text(said))


async def refuse_as_unknown(gateway: GatewayDouble) -> None:
    request = await gateway.held.get()
    assert request.method == "job/get"
    await request.refuse(404, "unknown_job", "no such job")


async def test_a_turn_shows_its_text_and_its_calls_and_the_session_stays(gateway: GatewayDouble, store: Store) -> None:
    """The text alone goes to stdout; the way back is said at the beginning."""
    async with chatting(gateway, "--allow", "time", "--allow", "git/log") as process:
        say(process, "What time is it?")
        request = await accept(gateway, "turn1")
        await store.emit("turn1", "output", stream="text", text="I look.")
        await step(store)
        await store.emit("call1", "queued", attempt=0, server="time", tool="now")
        await store.emit("call1", "result", outcome="succeeded", result=text("noon\nin UTC"))
        await answer(store, "It is noon.")
        got = await leave(process)

    assert (request.method, request.params["content"]) == ("chat/send", "What time is it?")
    assert (got.code, got.out) == (0, "I look.\nIt is noon.\n")
    assert got.err.splitlines() == [
        f"session {SESSION}; orchestrator chat --session {SESSION} comes back to it",
        '· time/now {"zone": "UTC"}',
        "· time/now ok in 0.0 s: noon",
    ]
    assert gateway.opens == [{"allow": ["time", "git/log"]}]
    assert "session/close" not in gateway.requests


@pytest.mark.parametrize(("said", "method", "shown"), [("y", "chat/approve", "ok"), ("", "chat/deny", "denied")])
async def test_a_call_that_asks_waits_for_the_users_word(
    gateway: GatewayDouble, store: Store, said: str, method: str, shown: str
) -> None:
    """Only a clear yes lets it run."""
    async with chatting(gateway) as process:
        say(process, "What time is it?", said)
        await accept(gateway, "turn1")
        await step(store, ask=True)
        await refuse_as_unknown(gateway)
        request = await gateway.held.get()
        await request.answer(job="call1", approved=said == "y")
        await store.emit("call1", "decision", attempt=0, approved=said == "y", turn="turn1")
        if said:
            await store.emit("call1", "queued", attempt=0, server="time", tool="now")
            await store.emit("call1", "result", outcome="succeeded", result=text("noon"))
        await answer(store, "Done.")
        got = await leave(process)

    assert (request.method, request.params["job"]) == (method, "call1")
    assert 'allow time/now {"zone": "UTC"}? [y/N]' in got.err
    assert f"· time/now {shown}" in got.err
    assert got.out == "Done.\n"


async def test_a_question_that_somebody_else_has_answered_is_not_asked_any_more(
    gateway: GatewayDouble, store: Store
) -> None:
    """The line that was waited for is the next message."""
    async with chatting(gateway) as process:
        say(process, "What time is it?")
        await accept(gateway, "turn1")
        await step(store, ask=True)
        await refuse_as_unknown(gateway)
        assert process.stderr is not None
        await process.stderr.readuntil(b"[y/N]")
        await store.emit("call1", "decision", attempt=0, approved=False, turn="turn1")
        await answer(store, "Done.")
        assert process.stdout is not None
        await process.stdout.readuntil(b"Done.")
        say(process, "Thank you")
        request = await gateway.held.get()
        await request.refuse(503, "store_unavailable", "not now")
        got = await leave(process)

    assert request.params["content"] == "Thank you"
    assert "· time/now denied" in got.err
    assert got.code == 2
    assert "chat/deny" not in gateway.requests


async def test_what_an_attempt_said_that_broke_off_is_called_void(gateway: GatewayDouble, store: Store) -> None:
    """And the next attempt's text follows."""
    async with chatting(gateway) as process:
        say(process, "What time is it?")
        await accept(gateway, "turn1")
        await store.emit("turn1", "output", stream="text", text="It is")
        await store.emit("turn1", "retrying", error={"message": "lost"})
        await store.emit("turn1", "started", attempt=2, worker="w", model="m", discard=True)
        await store.emit("turn1", "output", attempt=2, stream="text", text="Noon.")
        await store.emit("turn1", "result", attempt=2, outcome="succeeded", result=text("Noon."))
        got = await leave(process)

    assert got.out == "It is\nNoon.\n"
    assert got.err.count("void") == 1


async def test_without_a_model_the_sentence_is_shown_and_commands_still_run_tools(
    gateway: GatewayDouble, store: Store
) -> None:
    """A command calls as `orchestrator call` does, with the types of the tool's schema."""
    async with chatting(gateway) as process:
        say(process, "hello", "/time now digits=2")
        await accept(gateway, "turn1")
        error = {"type": "no_model", "message": "no model is configured: set CHAT_MODEL"}
        await store.emit("turn1", "result", outcome="failed", error=error)
        request = await accept(gateway, "job2")
        await store.emit("job2", "result", outcome="succeeded", result=text("noon"))
        got = await leave(process)

    assert request.params["arguments"] == {"digits": 2}
    assert "no model is configured: set CHAT_MODEL" in got.err
    assert "/help" in got.err
    assert (got.code, got.out) == (0, "noon\n")


async def test_no_control_sequence_of_a_model_or_a_tool_reaches_the_terminal(
    gateway: GatewayDouble, store: Store
) -> None:
    """They are written out; nothing is lost."""
    nasty = "\x1b]0;title\x07\x9b2J\r\u202e"
    async with chatting(gateway) as process:
        say(process, "hello", "/time now")
        await accept(gateway, "turn1")
        await step(store, arguments={"zone": nasty}, tool=f"now{nasty}")
        await store.emit("call1", "queued", attempt=0, server="time", tool="now")
        await store.emit("call1", "result", outcome="failed", error={"type": "x", "message": nasty})
        await answer(store, nasty)
        await accept(gateway, "job2")
        await store.emit("job2", "output", stream="stdout", text=nasty)
        await store.emit("job2", "result", outcome="failed", error={"type": "x", "message": nasty})
        got = await leave(process)

    assert got.out.splitlines()[0] == "\\x1b]0;title\\x07\\x9b2J\\x0d\\u202e"
    for harmful in "\x1b\x07\x9b\r\u202e":
        assert harmful not in got.out + got.err


async def test_a_wrong_command_is_one_sentence_and_the_dialogue_goes_on(gateway: GatewayDouble) -> None:
    """Nothing is sent."""
    async with chatting(gateway) as process:
        say(process, "/nonsense", "/time now digits=many", "/time 'now", "/help", "/quit", "never read")
        got = await leave(process)

    assert got.code == 0
    assert "/nonsense is no command" in got.err
    assert "'many' is not integer" in got.err
    assert "no closing quotation" in got.err
    assert "/SERVER TOOL KEY=VALUE" in got.err
    assert not {"chat/send", "tools/call"} & set(gateway.requests)


async def test_with_json_each_event_is_a_line(gateway: GatewayDouble, store: Store) -> None:
    """Of the turn and of its calls, and nothing else."""
    async with chatting(gateway, "--json") as process:
        say(process, "hello")
        await accept(gateway, "turn1")
        await step(store)
        await store.emit("call1", "result", outcome="succeeded")
        await answer(store, "Done.")
        got = await leave(process)

    events = [json.loads(line) for line in got.out.splitlines()]
    assert [(each["job"], each["type"]) for each in events] == [
        ("turn1", "queued"),
        ("turn1", "step"),
        ("call1", "result"),
        ("turn1", "output"),
        ("turn1", "result"),
    ]


async def test_a_session_from_before_shows_what_was_said_and_follows_the_turn_that_runs(
    gateway: GatewayDouble, store: Store
) -> None:
    """The last messages, with how many are left out; what the turn has said comes with its events, once."""
    old = [{"number": n, "role": "user", "content": f"line {n}", "turn": f"t{n}"} for n in range(1, 26)]
    asked = {"number": 26, "role": "user", "content": "And now?", "turn": "turn1"}
    looked = {"number": 27, "role": "assistant", "content": "I look.", "turn": "turn1", "calls": []}
    gateway.answers["conversation/get"] = {"messages": [*old, asked, looked], "faults": [], "after": None}
    await store.emit("turn1", "queued", attempt=0, server="chat", tool="send")
    await store.emit("turn1", "output", stream="text", text="I look.")
    async with chatting(gateway, "--session", SESSION) as process:
        request = await gateway.held.get()
        known = {"attempt": 1, "seq": store.last, "server": "chat", "tool": "send"}
        await request.answer(job=request.params["job"], state="output", **known)
        assert process.stdout is not None
        shown = await process.stdout.readuntil(b"I look.")
        await store.emit("turn1", "result", outcome="succeeded", result=text("I look."))
        got = await leave(process)

    lines = (shown.decode() + got.out).splitlines()
    assert lines[0] == "> line 8"
    assert lines[-2:] == ["> And now?", "I look."]
    assert "7 earlier messages are not shown" in got.err


async def test_ctrl_c_during_a_turn_cancels_it_and_the_dialogue_goes_on(gateway: GatewayDouble, store: Store) -> None:
    """At the prompt it leaves."""
    async with chatting(gateway) as process:
        say(process, "hello")
        await accept(gateway, "turn1")
        await store.emit("turn1", "output", stream="text", text="Well,\n")
        assert process.stdout is not None
        await process.stdout.readline()
        process.send_signal(signal.SIGINT)
        cancel = await gateway.held.get()
        await cancel.answer(job="turn1", state="output")
        await store.emit("turn1", "result", outcome="cancelled")
        assert process.stderr is not None
        await process.stderr.readuntil(b"was cancelled")
        process.send_signal(signal.SIGINT)
        await process.wait()

    assert cancel.params == {"session": SESSION, "job": "turn1"}
    assert process.returncode == 130


async def test_on_a_terminal_lines_are_edited_and_the_terminal_is_left_as_it_was(
    gateway: GatewayDouble, store: Store
) -> None:
    """A prompt asks for each; Ctrl-D leaves."""
    ours, theirs = pty.openpty()
    seen = bytearray()
    loop = asyncio.get_running_loop()
    more = asyncio.Event()

    def take() -> None:
        seen.extend(os.read(ours, 65536))
        more.set()

    async def until(words: bytes) -> None:
        while words not in seen:
            more.clear()
            await more.wait()

    loop.add_reader(ours, take)
    process = await asyncio.create_subprocess_exec(
        *ARGV, stdin=theirs, stdout=theirs, stderr=DEVNULL, env=_env(gateway), start_new_session=True
    )
    try:
        async with asyncio.timeout(20):
            await until(b"> ")
            os.write(ours, b"allo\x01H\r")
            request = await accept(gateway, "turn1")
            await answer(store, "Good day.")
            await until(b"Good day.\r\n> ")
            os.write(ours, b"\x04")
            code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        loop.remove_reader(ours)
        os.close(ours)
        os.close(theirs)

    assert request.params["content"] == "Hallo"
    assert code == 0


def _env(gateway: GatewayDouble) -> dict[str, str]:
    return {**os.environ, "ORCHESTRATOR_URL": gateway.url, "TERM": "xterm"}
