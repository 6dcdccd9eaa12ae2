"""`orchestrator conversations import` as an operator runs it: a process of its own, against a gateway double."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import os
import pty
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.client.gateway_double import GatewayDouble, HeldRequest, Store, run_gateway
from tests.unit.client.test_cli import Ended, ended, running

METHOD = "conversations/import"
NOTHING = "imported 0 messages of 0 conversations; skipped 0 other keys; faults 0\n"


@pytest.fixture
async def gateway() -> AsyncIterator[GatewayDouble]:
    async with run_gateway(Store()) as double:
        double.hold.add(METHOD)
        yield double


def messages(count: int, size: int = 10) -> list[dict[str, Any]]:
    return [{"role": "user", "content": f"{number} ".ljust(size, "x")} for number in range(1, count + 1)]


def line(session: str, value: Any, **more: Any) -> bytes:
    return json.dumps({"key": f"conversation:{session}", "value": value, **more}).encode() + b"\n"


def dump(tmp_path: Path, *lines: bytes) -> str:
    path = tmp_path / "dump"
    path.write_bytes(b"".join(lines))
    return str(path)


def command(file: str, *more: str) -> list[str]:
    return ["conversations", "import", file, "--tenant", "acme", *more]


async def accept(gateway: GatewayDouble, added: int | None = None) -> dict[str, Any]:
    """Answer the next request as a gateway does that has `added` of its messages not yet; its params."""
    request = await gateway.held.get()
    assert request.method == METHOD
    params = request.params
    count = len(params["messages"])
    last = params["after"] + count
    await request.answer(session=params["session"], last=last, added=count if added is None else added)
    return params


async def test_every_conversation_is_sent_and_the_last_line_counts(gateway: GatewayDouble, tmp_path: Path) -> None:
    """Each with its own time to live; an empty one is nothing to send."""
    file = dump(tmp_path, line("s1", messages(2), ttl=90), line("s2", messages(1)), b"{}\n", line("s3", []))
    async with running(gateway.url, *command(file)) as process:
        first, second = await accept(gateway), await accept(gateway)
        got = await ended(process)

    assert first == {"session": "s1", "tenant": "acme", "messages": messages(2), "after": 0, "ttl_s": 90}
    assert second == {"session": "s2", "tenant": "acme", "messages": messages(1), "after": 0}
    assert got.code == 1
    assert got.out == "imported 3 messages of 2 conversations; skipped 0 other keys; faults 1\n"
    assert got.err == "orchestrator: line 3: it is no object with a key\n"


async def test_a_long_conversation_goes_in_batches_and_what_is_there_is_told_apart(
    gateway: GatewayDouble, tmp_path: Path
) -> None:
    """By bytes and by number; a time to live that is said counts for all."""
    file = dump(tmp_path, line("s1", messages(3, 300_000), ttl=90), line("s2", messages(501)), line("s3", messages(1)))
    async with running(gateway.url, *command(file, "--ttl-s", "60")) as process:
        got = [await accept(gateway, added) for added in (0, None, None, 100, None, 0)]
        done = await ended(process)

    assert [(each["session"], each["after"], len(each["messages"])) for each in got] == [
        ("s1", 0, 1), ("s1", 1, 1), ("s1", 2, 1), ("s2", 0, 500), ("s2", 500, 1), ("s3", 0, 1),
    ]  # fmt: skip
    assert {each["ttl_s"] for each in got} == {60}
    assert (done.code, done.err) == (0, "")
    assert done.out == (
        "imported 103 messages of 2 conversations; 402 messages were there already; skipped 0 other keys; faults 0\n"
    )


async def test_a_gateway_that_takes_less_gets_smaller_batches(gateway: GatewayDouble, tmp_path: Path) -> None:
    """One message that is too large by itself is a fault; the next conversation is imported."""
    file = dump(tmp_path, line("s1", [*messages(4, 1000), *messages(1, 9000)]), line("s2", messages(1)))
    sizes = []
    async with running(gateway.url, *command(file)) as process:
        while True:
            request = await gateway.held.get()
            if request.params["session"] == "s2":
                await request.answer(session="s2", last=1, added=1)
                break
            sizes.append(len(request.params["messages"]))
            if request.size > 3000:
                await request.refuse(413, "payload_too_large", "it is too large", limit=3000)
            else:
                last = request.params["after"] + sizes[-1]
                await request.answer(session="s1", last=last, added=sizes[-1])
        got = await ended(process)

    assert sizes[0] == 5
    assert sizes[-1] == 1
    assert got.code == 1
    assert got.err == "orchestrator: line 1: session s1: it is too large (messages 1 to 4 are imported)\n"
    assert got.out.startswith("imported 5 messages of 2 conversations;")


@pytest.mark.parametrize("type_", ["conversation_differs", "conversation_moved", "session_taken", "internal_error"])
async def test_a_refusal_that_concerns_one_conversation_is_a_fault_of_its_line(
    gateway: GatewayDouble, tmp_path: Path, type_: str
) -> None:
    """With the gateway's own words; the others go on."""
    file = dump(tmp_path, line("s1", messages(1)), line("s2", messages(1)))
    async with running(gateway.url, *command(file)) as process:
        await (await gateway.held.get()).refuse(409, type_, "not that one")
        await accept(gateway)
        got = await ended(process)

    assert got.code == 1
    assert got.err == "orchestrator: line 1: session s1: not that one\n"
    assert got.out == "imported 1 messages of 1 conversations; skipped 0 other keys; faults 1\n"


@pytest.mark.parametrize("type_", ["operators_only", "conversation_store_full", "unknown_method"])
async def test_a_refusal_that_concerns_all_ends_the_import(gateway: GatewayDouble, tmp_path: Path, type_: str) -> None:
    """Exit code 2; the summary says how far it came."""
    file = dump(tmp_path, line("s1", messages(1)), line("s2", messages(1)))
    async with running(gateway.url, *command(file)) as process:
        await (await gateway.held.get()).refuse(403, type_, "none of that")
        got = await ended(process)

    assert (got.code, got.err, got.out) == (2, "orchestrator: none of that\n", NOTHING)


async def test_a_batch_is_sent_again_while_the_store_is_away_or_its_answer_is_lost(
    gateway: GatewayDouble, tmp_path: Path
) -> None:
    """It may be: it is not added twice."""
    file = dump(tmp_path, line("s1", messages(1)))
    async with running(gateway.url, *command(file)) as process:
        await (await gateway.held.get()).refuse(503, "store_unavailable", "NATS does not answer", retryable=True)
        await gateway.held.get()
        gateway.drop()
        await accept(gateway, 0)
        got = await ended(process)

    assert (got.code, got.err) == (0, "")
    assert "1 messages were there already" in got.out


async def test_a_dry_run_reads_and_counts_without_a_gateway(tmp_path: Path) -> None:
    """Faults too."""
    packed = base64.b64encode(gzip.compress(json.dumps(messages(3)).encode())).decode()
    file = dump(tmp_path, line("s1", packed), line("s2", json.dumps(messages(1))), line("a b", []), b'{"key": "x"}\n')
    async with running("http://127.0.0.1:1", *command(file, "--dry-run")) as process:
        got = await ended(process)

    assert got.code == 1
    assert got.out == "dry run: would have imported 4 messages of 2 conversations; skipped 1 other keys; faults 1\n"
    assert "line 3: the session id 'a b' cannot be one here" in got.err


async def test_a_dump_comes_through_a_pipe_gzipped_or_not(gateway: GatewayDouble) -> None:
    """A silent pipe does not keep the client from its connection: a line is sent as soon as it is there."""
    async with running(gateway.url, *command("-"), stdin=PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(line("s1", messages(1)))
        first = await accept(gateway)
        process.stdin.write(line("s2", messages(1)))
        second = await accept(gateway)
        got = await _closed(process)

    assert (first["session"], second["session"], got.code) == ("s1", "s2", 0)
    async with running(gateway.url, *command("-"), stdin=PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(gzip.compress(line("s3", messages(1))))
        process.stdin.write_eof()
        third = await accept(gateway)
        got = await ended(process)

    assert (third["session"], got.code) == ("s3", 0)


async def _closed(process: asyncio.subprocess.Process) -> Ended:
    assert process.stdin is not None
    process.stdin.write_eof()
    return await ended(process)


async def test_on_a_terminal_a_line_says_how_far_it_is(gateway: GatewayDouble, tmp_path: Path) -> None:
    """On stderr, so that the summary can be piped; a fault stands above it."""
    ours, theirs = pty.openpty()
    file = dump(tmp_path, line("s1", messages(2)), b"{\n", line("s2", messages(1)))
    try:
        async with running(gateway.url, *command(file), stderr=theirs) as process:
            await accept(gateway)
            request: HeldRequest = await gateway.held.get()
            await request.answer(session="s2", last=1, added=1)
            out, _ = await process.communicate()
        shown = os.read(ours, 65536).decode()
    finally:
        os.close(ours)
        os.close(theirs)

    assert out == b"imported 3 messages of 2 conversations; skipped 0 other keys; faults 1\n"
    assert "line 1: imported 2 messages" in shown
    assert "orchestrator: line 2: it is not JSON" in shown


async def test_a_file_that_is_not_there_is_one_sentence(gateway: GatewayDouble, tmp_path: Path) -> None:
    """And a tenant has to be named."""
    async with running(gateway.url, *command(str(tmp_path / "none"))) as process:
        got = await ended(process)
    assert (got.code, got.err) == (2, f"orchestrator: {tmp_path / 'none'}: No such file or directory\n")
    async with running(gateway.url, "conversations", "import", str(tmp_path)) as process:
        assert (await ended(process)).code == 2
