"""`orchestrator dead-letters` as an operator runs it: a process of its own, against a gateway double."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from client import connect
from tests.unit.client.gateway_double import SESSION, GatewayDouble, HeldRequest, Store, run_gateway
from tests.unit.client.test_cli import ended, run, running, text

SUMMARY = {
    "letter": "7",
    "time_ms": 1_700_000_000_000,
    "tenant": "acme",
    "server": "git",
    "tool": "git_log",
    "session": SESSION,
    "job": "job1",
    "attempts": 3,
    "reason": "given up after 3 attempts",
}
NOBODYS = SUMMARY | {"letter": "6", "tenant": "", "tool": "", "job": "", "attempts": 0, "reason": "not msgpack"}
ATTEMPT = {
    "attempt": 1,
    "worker": "w-1",
    "engine": "e",
    "container": "0123456789ab",
    "image_digest": "sha256:1",
    "started_ms": 1_700_000_000_000,
    "ended_ms": 1_700_000_001_000,
    "error": {"type": "server_gone", "message": "exit code 3"},
}
SHOWN = SUMMARY | {
    "error": {"type": "too_many_attempts", "message": "given up after 3 attempts"},
    "stderr": "fatal: [bold]no memory[/bold]",
    "image_digest": "sha256:1",
    "trace": "a" * 32,
    "traceparent": "",
    "attempts": [ATTEMPT, ATTEMPT | {"attempt": 2, "ended_ms": None, "error": None}],
    "redrive_of": "job0",
    "deliveries": 3,
    "size": 200,
    "arguments": {"repo": "/srv"},
    "meta": {},
}


@pytest.fixture
async def store() -> Store:
    return Store()


@pytest.fixture
async def gateway(store: Store) -> AsyncIterator[GatewayDouble]:
    async with run_gateway(store) as double:
        double.hold |= {f"dead_letters/{method}" for method in ("list", "show", "redrive", "delete", "purge")}
        yield double


async def held(gateway: GatewayDouble, method: str) -> HeldRequest:
    request = await gateway.held.get()
    assert request.method == f"dead_letters/{method}"
    return request


def rows(out: str) -> list[list[str]]:
    return [line.split() for line in out.splitlines()]


async def test_letters_are_a_table_page_by_page_up_to_the_limit(gateway: GatewayDouble) -> None:
    """A short page goes on; what nobody knows is a question mark."""
    async with running(gateway.url, "dead-letters", "list", "--limit", "2", "--server", "git") as process:
        first = await held(gateway, "list")
        await first.answer(letters=[SUMMARY], before="7")
        second = await held(gateway, "list")
        await second.answer(letters=[NOBODYS], before="6")
        got = await ended(process)

    assert first.params == {"limit": 2, "server": "git"}
    assert second.params == {"limit": 1, "server": "git", "before": "7"}
    assert got.code == 0
    assert rows(got.out)[1] == [
        "7", "2023-11-14", "22:13:20Z", "acme", "git", "git_log", "job1", "3", "given", "up", "after", "3", "attempts",
    ]  # fmt: skip
    assert rows(got.out)[2] == ["6", "2023-11-14", "22:13:20Z", "?", "git", "?", "?", "0", "not", "msgpack"]


async def test_no_letters_are_a_sentence_and_in_json_an_empty_list(gateway: GatewayDouble) -> None:
    """An empty table would look like a fault."""
    gateway.hold.discard("dead_letters/list")
    gateway.answers["dead_letters/list"] = {"letters": [], "before": None}

    assert (await run(gateway, "dead-letters", "list")).out == "no dead letters\n"
    assert (await run(gateway, "dead-letters", "list", "--json")).out == "[]\n"


async def test_a_letter_is_shown_with_attempts_last_words_trace_and_arguments(gateway: GatewayDouble) -> None:
    """The server's text is shown as it is."""
    gateway.hold.discard("dead_letters/show")
    gateway.answers["dead_letters/show"] = SHOWN
    got = await run(gateway, "dead-letters", "show", "7")

    assert got.code == 0
    assert ["why", "too_many_attempts:", "given", "up", "after", "3", "attempts"] in rows(got.out)
    assert ["trace", "a" * 32] in rows(got.out)
    assert ["redrive", "of", "job0"] in rows(got.out)
    assert [
        "1", "w-1", "0123456789ab", "2023-11-14", "22:13:20Z", "2023-11-14", "22:13:21Z", "exit", "code", "3",
    ] in rows(got.out)  # fmt: skip
    assert ["2", "w-1", "0123456789ab", "2023-11-14", "22:13:20Z", "worker", "lost"] in rows(got.out)
    assert "fatal: [bold]no memory[/bold]\n" in got.out
    assert '"repo": "/srv"' in got.out
    assert json.loads((await run(gateway, "dead-letters", "show", "7", "--json")).out) == SHOWN


async def test_a_letter_without_a_job_says_so(gateway: GatewayDouble) -> None:
    """And where its bytes are."""
    gateway.hold.discard("dead_letters/show")
    without = {name: value for name, value in SHOWN.items() if name not in ("arguments", "meta")}
    gateway.answers["dead_letters/show"] = without | NOBODYS | {"attempts": [], "stderr": "", "payload": "wQ=="}
    got = await run(gateway, "dead-letters", "show", "6")

    assert "no job can be made of its message of 200 bytes; --json shows it" in got.out
    assert "ATTEMPT" not in got.out


async def test_an_unknown_letter_is_one_sentence_and_exit_code_two(gateway: GatewayDouble) -> None:
    """The gateway's own."""
    async with running(gateway.url, "dead-letters", "show", "9") as process:
        request = await held(gateway, "show")
        await request.refuse(404, "unknown_dead_letter", "unknown dead letter '9'")
        got = await ended(process)

    assert (got.code, got.err) == (2, "orchestrator: unknown dead letter '9'\n")


async def redrive(gateway: GatewayDouble, store: Store, **end: Any) -> HeldRequest:
    """Accept a redrive; the job's first and last events."""
    request = await held(gateway, "redrive")
    queued = await store.emit("job2", "queued", server="git", tool="git_log", redrive_of="job1")
    await store.emit("job2", "result", **end)
    await request.answer(letter="7", session=SESSION, job="job2", seq=queued["seq"], redrive_of="job1")
    return request


async def test_a_redriven_job_is_followed_to_its_end(gateway: GatewayDouble, store: Store) -> None:
    """In its own session, from its first event on; other jobs of it are not shown."""
    await store.emit("job1", "result", outcome="dead_lettered")
    async with running(gateway.url, "dead-letters", "redrive", "7") as process:
        request = await redrive(gateway, store, outcome="succeeded", result=text("at last"))
        got = await ended(process)

    assert request.params == {"letter": "7"}
    assert (got.code, got.out, got.err) == (0, "at last\n", "")
    assert gateway.opens[1]["session"] == SESSION


async def test_a_redriven_job_that_fails_again_is_exit_code_one(gateway: GatewayDouble, store: Store) -> None:
    """With its error as a sentence."""
    async with running(gateway.url, "dead-letters", "redrive", "7") as process:
        error = {"type": "too_many_attempts", "message": "given up after 6 attempts"}
        await redrive(gateway, store, outcome="dead_lettered", error=error)
        got = await ended(process)

    assert (got.code, got.out) == (1, "")
    assert got.err == "orchestrator: job job2 was given up: given up after 6 attempts\n"


async def test_a_detached_redrive_names_the_job_and_leaves(gateway: GatewayDouble, store: Store) -> None:
    """Nothing is followed."""
    async with running(gateway.url, "dead-letters", "redrive", "7", "--detach") as process:
        await (await held(gateway, "redrive")).answer(letter="7", session="s", job="job2", seq=5, redrive_of="job1")
        got = await ended(process)
    async with running(gateway.url, "dead-letters", "redrive", "7", "--detach", "--json") as process:
        await (await held(gateway, "redrive")).answer(letter="7", session="s", job="job2", seq=5, redrive_of="job1")
        as_json = await ended(process)

    assert (got.code, got.out) == (0, "job job2 in session s\n")
    assert json.loads(as_json.out) == {"session": "s", "job": "job2", "seq": 5, "redrive_of": "job1"}


async def test_an_operator_is_told_that_another_tenants_job_cannot_be_followed(
    gateway: GatewayDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was redriven all the same."""
    opened = gateway.open

    async def of_another_tenant(request: HeldRequest) -> None:
        if request.params.get("session") == "theirs":
            await request.refuse(404, "unknown_session", "unknown session 'theirs'")
        else:
            await opened(request)

    monkeypatch.setattr(gateway, "open", of_another_tenant)
    async with running(gateway.url, "dead-letters", "redrive", "7") as process:
        request = await held(gateway, "redrive")
        await request.answer(letter="7", session="theirs", job="job2", seq=5, redrive_of="job1")
        got = await ended(process)

    assert got.code == 0
    assert got.err == "orchestrator: job job2 is in session theirs of another tenant: it cannot be followed\n"


async def test_a_redrive_whose_answer_is_lost_is_asked_for_again(gateway: GatewayDouble) -> None:
    """It may be: the answer is the same job."""
    async with connect(gateway.url) as session, asyncio.TaskGroup() as tasks:
        asked = tasks.create_task(session.dead_letters.redrive("7"))
        await held(gateway, "redrive")
        gateway.drop()
        again = await held(gateway, "redrive")
        await again.answer(letter="7", session="s", job="job2", seq=5, redrive_of="job1")

    assert asked.result().job == "job2"


# --- purge ------------------------------------------------------------------------------------------------------


async def test_named_letters_are_removed_one_by_one(gateway: GatewayDouble) -> None:
    """Without a question where --yes says so."""
    async with running(gateway.url, "dead-letters", "purge", "7", "6", "--yes") as process:
        for letter in ("7", "6"):
            request = await held(gateway, "delete")
            assert request.params == {"letter": letter}
            await request.answer(letter=letter)
        got = await ended(process)

    assert (got.code, got.out, got.err) == (0, "removed 2\n", "")


@pytest.mark.parametrize(
    ("words", "params"),
    [
        (["--all"], {"all": True}),
        (["--server", "git"], {"server": "git"}),
        (["--all", "--older-than", "2d"], {"all": True, "older_than_s": 172_800}),
        (["--server", "git", "--older-than", "30m"], {"server": "git", "older_than_s": 1_800}),
    ],
)
async def test_a_purge_goes_on_until_nothing_is_left(
    gateway: GatewayDouble, words: list[str], params: dict[str, Any]
) -> None:
    """The gateway removes a bounded number at a time."""
    async with running(gateway.url, "dead-letters", "purge", "--yes", *words) as process:
        first = await held(gateway, "purge")
        await first.answer(purged=1000, before="50")
        second = await held(gateway, "purge")
        await second.answer(purged=3, before=None)
        got = await ended(process)

    assert (first.params, second.params) == (params, params | {"before": "50"})
    assert (got.code, got.out) == (0, "removed 1003\n")


@pytest.mark.parametrize(("said", "removes"), [(b"y\n", True), (b"n\n", False), (b"\n", False), (b"", False)])
async def test_a_purge_asks_first(gateway: GatewayDouble, said: bytes, removes: bool) -> None:
    """No answer is a no; nothing has reached a gateway then."""
    gateway.hold.discard("dead_letters/purge")
    gateway.answers["dead_letters/purge"] = {"purged": 4, "before": None}
    async with running(gateway.url, "dead-letters", "purge", "--all", stdin=asyncio.subprocess.PIPE) as process:
        out, err = await process.communicate(said)

    assert "Remove letters of all servers for good?" in err.decode()
    if removes:
        assert (process.returncode, out) == (0, b"removed 4\n")
    else:
        assert process.returncode == 2
        assert err.decode().endswith("orchestrator: nothing was removed\n")
        assert gateway.requests == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "say which letters"),
        (["7", "--all"], "say which letters"),
        (["--all", "--server", "git"], "say which letters"),
        (["7", "--older-than", "2d"], "--older-than goes with --server or --all"),
        (["--all", "--older-than", "tomorrow"], "'tomorrow' is no age"),
    ],
)
async def test_a_purge_that_does_not_say_what_is_refused_at_once(
    gateway: GatewayDouble, words: list[str], said: str
) -> None:
    """Before anything is asked or sent."""
    got = await run(gateway, "dead-letters", "purge", "--yes", *words)

    assert (got.code, said in got.err) == (2, True), got.err
    assert gateway.requests == []
