"""`orchestrator top`: what it shows, by which keys, and what it does when gateways go away."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from time import monotonic
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, Static

from client.errors import Unreachable
from client.overview import Overview, overview
from client.sections import SECTIONS, Order, lines
from client.top_terminal import SectionTable, Top
from tests.ports import free_port
from tests.unit.client import gateway_double
from tests.unit.client.gateway_double import KEY, GatewayDouble, Store, run_gateway
from tests.unit.client.test_cli import run

DEADLINE_S = 20.0
EVERY_S = 0.05

WORKERS, POOLS, QUEUES, GATEWAYS = SECTIONS


def worker(name: str, **facts: Any) -> dict[str, Any]:
    pool = {"server": "time", "scope": "shared", "ready": 1, "busy": 2, "starting": 3, "limit": 6, "leases": 0}
    return {
        "id": name.upper(),
        "host": "box",
        "version": "0.1.0",
        "worker": name,
        "slots": {"used": 2, "limit": 10},
        "pools": [pool | {"failure": ""}],
        "chat": {"model": "", "turns": 1, "limit": 4},
        "draining": False,
        "not_ready": "",
        "jobs_ended": 7,
        "uptime_s": 3700.0,
        "memory_bytes": 100 * 1024 * 1024,
        **facts,
    }


def status(*workers: dict[str, Any], **gateway: Any) -> dict[str, Any]:
    told = {"host": "door", "uptime_s": 65.0, "connected": True, "reason": "", "draining": False}
    return {
        "gateway": told | {"connections": 3, "sessions": 4} | gateway,
        "workers": list(workers),
        "queues": [
            {"server": "time", "waiting": 5, "running": 2, "oldest_s": 12.25},
            {"server": "chat", "waiting": 0, "running": 0, "oldest_s": None},
        ],
    }


@pytest.fixture
async def gateway() -> AsyncIterator[GatewayDouble]:
    async with run_gateway(Store()) as double:
        double.answers["status/get"] = status(worker("w-1"))
        yield double


@pytest.fixture
async def view(gateway: GatewayDouble) -> AsyncIterator[Overview]:
    async with overview([gateway.url], KEY) as made:
        await made.look()
        yield made


class Screen:
    """What a user sees and does."""

    def __init__(self, pilot: Pilot[None]) -> None:
        self.pilot = pilot

    def column(self, section: str, number: int = 0) -> list[str]:
        table = self.pilot.app.query_one(f"#{section}", SectionTable)
        return [str(table.get_row_at(row)[number]) for row in range(table.row_count)]

    def titles(self, section: str) -> list[str]:
        table = self.pilot.app.query_one(f"#{section}", SectionTable)
        return [str(column.label).rstrip() for column in table.ordered_columns]

    def said(self, widget: str) -> str:
        found = self.pilot.app.query_one(f"#{widget}", Static)
        return str(found.content) if found.display else ""

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)

    async def until(self, happened: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not happened():
                await self.pilot.pause(0.01)


@pytest.fixture
async def screen(view: Overview) -> AsyncIterator[Screen]:
    async with Top(view, EVERY_S).run_test(size=(140, 50)) as pilot:
        yield Screen(pilot)


# --- one view ---------------------------------------------------------------------------------------------------


async def test_once_prints_workers_pools_queues_and_gateways_as_text(gateway: GatewayDouble) -> None:
    """For scripts and terminals that cannot be drawn on."""
    got = await run(gateway, "top", "--once")

    assert (got.code, got.err) == (0, "")
    assert got.out.splitlines()[0] == "1 workers, 2/10 slots, 5 waiting, 4 sessions"
    rows = [line.split() for line in got.out.splitlines()]
    assert ["w-1", "box", "0.1.0", "2", "10", "1", "7", "100M", "1h01m", "ready"] in rows
    assert ["time", "w-1", "shared", "1", "2", "3", "6", "0"] in rows
    assert ["time", "5", "2", "12.2s"] in rows
    assert ["chat", "0", "0"] in rows
    assert [gateway.url, "door", "3", "4", "1m05s", "serving"] in rows


async def test_json_prints_one_object(gateway: GatewayDouble) -> None:
    """With all that is known, as the gateway tells it."""
    got = await run(gateway, "top", "--json")

    [line] = got.out.splitlines()
    told = json.loads(line)
    assert (told["workers"], told["queues"]) == (status(worker("w-1"))["workers"], status()["queues"])
    assert told["gateways"][0] == {"url": gateway.url, "state": "serving", "why": "", **status()["gateway"]}
    assert told["jobs_per_s"] is None
    assert told["age_s"] >= 0


async def test_without_a_terminal_the_live_view_says_what_does_without(gateway: GatewayDouble) -> None:
    got = await run(gateway, "top")

    assert (got.code, got.out) == (2, "")
    assert got.err == "orchestrator: the live view needs a terminal: --once prints one view as plain text\n"


async def test_without_textual_the_live_view_says_which_extra_has_it(gateway: GatewayDouble) -> None:
    """A user of the client alone need not have it."""
    screen, terminal = pty.openpty()
    without = "import sys; sys.modules['textual'] = None; from client.cli import main; main()"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", without, "top", "--url", gateway.url),
        env={**os.environ, "TERM": "xterm"},
        stdin=terminal,
        stdout=terminal,
        stderr=PIPE,
    )
    async with asyncio.timeout(DEADLINE_S):
        _, said = await process.communicate()
    os.close(terminal)
    os.close(screen)

    assert process.returncode == 2
    assert b"pip install 'mcp-orchestrator-client[top]'; --once does without" in said


async def test_a_wrong_key_is_refused_in_one_sentence(gateway: GatewayDouble) -> None:
    got = await run(gateway, "top", "--once", "--key", "wrong")

    assert (got.code, got.out) == (2, "")
    assert got.err.startswith("orchestrator: HTTP 401")


async def test_where_no_gateway_answers_the_exit_code_says_so() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    async with overview([url], KEY) as view:
        with pytest.raises(Unreachable, match=f"no gateway answers at {url}"):
            await view.look()


async def test_of_several_gateways_each_is_shown_and_the_first_that_answers_tells_of_workers(
    gateway: GatewayDouble,
) -> None:
    """One that is away is no reason to see nothing."""
    away = f"http://127.0.0.1:{free_port()}"
    async with overview([away, gateway.url], KEY) as view:
        await view.look()

    assert [(row[0], row[5]) for row in lines(GATEWAYS, view)] == [(away, "reconnecting"), (gateway.url, "serving")]
    assert len(view.workers) == 1


async def test_a_gateway_without_its_store_keeps_what_was_known_of_workers(
    gateway: GatewayDouble, view: Overview
) -> None:
    """It tells of itself only."""
    gateway.answers["status/get"] = status(connected=False, reason="NATS is away") | {"queues": []}
    await view.look()

    assert lines(GATEWAYS, view)[0][5:] == ["no store", "NATS is away"]
    assert (len(view.workers), len(view.queues)) == (1, 2)


async def test_the_rate_counts_what_ended_between_two_looks(gateway: GatewayDouble, view: Overview) -> None:
    """A worker that is new, or began anew, counts from its next look on."""
    gateway.answers["status/get"] = status(worker("w-1", jobs_ended=9), worker("w-2", jobs_ended=1000))
    await view.look()
    rate = view.jobs_per_s
    gateway.answers["status/get"] = status(worker("w-1", jobs_ended=0))
    await view.look()

    assert rate is not None
    assert 0 < rate < 1000 / 0.01
    assert view.jobs_per_s == 0


def test_a_worker_that_is_not_ready_says_why() -> None:
    state = WORKERS.columns[-1]

    assert state.show(worker("w-1", not_ready="pools are warming up: git")) == "pools are warming up: git"
    assert state.show(worker("w-1", not_ready="draining", draining=True)) == "draining"


async def test_what_servers_say_cannot_reach_the_terminal(gateway: GatewayDouble, view: Overview) -> None:
    """A failure's text is a stranger's."""
    bad = worker("w-1")
    bad["pools"][0]["failure"] = "\x1b[2J[bold]gone\nnext"
    gateway.answers["status/get"] = status(bad)
    await view.look()

    assert lines(POOLS, view)[0][-1] == "\\x1b[2J[bold]gone next"


async def test_rows_are_sorted_by_number_with_what_is_not_known_first(gateway: GatewayDouble, view: Overview) -> None:
    oldest = 3
    gateway.answers["status/get"] = status() | {
        "queues": [
            {"server": name, "waiting": 0, "running": 0, "oldest_s": age}
            for name, age in [("a", 10), ("b", 9), ("c", None)]
        ]
    }
    await view.look()

    assert [row[0] for row in lines(QUEUES, view, Order(oldest))] == ["c", "b", "a"]
    assert [row[0] for row in lines(QUEUES, view, Order(oldest, descending=True))] == ["a", "b", "c"]
    assert [row[0] for row in lines(QUEUES, view, wanted="B")] == ["b"]


# --- the screen -------------------------------------------------------------------------------------------------


async def test_the_screen_follows_what_happens(gateway: GatewayDouble, screen: Screen) -> None:
    """Workers come and go without a key being touched."""
    assert screen.column("workers") == ["w-1"]
    assert screen.column("queues", 1) == ["5", "0"]

    gateway.answers["status/get"] = status(worker("w-1"), worker("w-2"))
    await screen.until(lambda: screen.column("workers") == ["w-1", "w-2"])
    gateway.answers["status/get"] = status()
    await screen.until(lambda: screen.column("workers") == [])

    assert screen.said("workers-title") == "no worker answers: jobs wait until one comes"


async def test_a_lost_gateway_leaves_the_last_view_until_it_is_back() -> None:
    """With its age; the fault is said in words."""
    answers = {"status/get": status(worker("w-1"))}
    async with AsyncExitStack() as stack:
        async with run_gateway(Store()) as gateway:
            gateway.answers |= answers
            view = await stack.enter_async_context(overview([gateway.url], KEY))
            await view.look()
            pilot = await stack.enter_async_context(Top(view, EVERY_S).run_test(size=(140, 50)))
            screen = Screen(pilot)
        await screen.until(lambda: "reconnecting" in screen.said("headline"))

        assert "as it was" in screen.said("headline")
        assert screen.said("fault").startswith(f"no gateway answers at {gateway.url}")
        assert screen.column("workers") == ["w-1"]
        assert screen.column("gateways", 5) == ["reconnecting"]

        async with run_gateway(Store(), int(gateway.url.rsplit(":", 1)[1])) as back:
            back.answers |= answers
            await screen.until(lambda: "reconnecting" not in screen.said("headline"))
            assert screen.said("fault") == ""


async def test_paused_nothing_is_asked(gateway: GatewayDouble, screen: Screen) -> None:
    """p again goes on."""
    await screen.press("p")
    await screen.until(lambda: "paused" in screen.said("headline"))
    gateway.answers["status/get"] = status(worker("w-1"), worker("w-2"))
    await screen.press("p")
    await screen.until(lambda: screen.column("workers") == ["w-1", "w-2"])

    assert "paused" not in screen.said("headline")


async def test_the_table_with_the_focus_is_sorted_column_by_column_and_reversed(screen: Screen) -> None:
    """An arrow shows where."""
    await screen.press("tab", "tab", "s", "s")
    await screen.until(lambda: screen.column("queues") == ["chat", "time"])
    assert screen.titles("queues")[:2] == ["QUEUE", "WAITING ▲"]

    await screen.press("r")
    await screen.until(lambda: screen.column("queues") == ["time", "chat"])
    assert screen.titles("queues")[1] == "WAITING ▼"


async def test_a_filter_shows_rows_with_a_text_until_escape(screen: Screen) -> None:
    """While it is typed, letters are no commands."""
    await screen.press("slash", *"chaqt")
    await screen.until(lambda: screen.column("queues") == [])
    assert screen.said("queues-title") == "no queues with 'chaqt'"
    await screen.press("backspace", "backspace", "t", "enter")
    await screen.until(lambda: screen.column("queues") == ["chat"])
    assert screen.column("workers") == []

    await screen.press("escape")
    await screen.until(lambda: screen.column("queues") == ["time", "chat"])
    assert not screen.pilot.app.query_one(Input).display


async def test_the_cursor_stays_at_its_line_when_workers_leave(gateway: GatewayDouble, screen: Screen) -> None:
    """As far as there is such a line."""
    table = screen.pilot.app.query_one("#workers", SectionTable)
    gateway.answers["status/get"] = status(*[worker(f"w-{number}") for number in range(4)])
    await screen.until(lambda: len(screen.column("workers")) == 4)
    await screen.press("down", "down")
    gateway.answers["status/get"] = status(*[worker(f"w-{number}") for number in range(3)])
    await screen.until(lambda: len(screen.column("workers")) == 3)
    assert table.cursor_row == 2

    gateway.answers["status/get"] = status(worker("w-0"))
    await screen.until(lambda: len(screen.column("workers")) == 1)
    assert table.cursor_row == 0


async def test_two_thousand_pools_are_drawn_in_seconds(gateway: GatewayDouble, screen: Screen) -> None:
    """A hundred workers with twenty servers each; it took a minute where each changed cell had a column measured."""
    began = monotonic()
    for busy in (10, 5):
        workers = [worker(f"w-{number:03}") for number in range(100)]
        for each in workers:
            each["pools"] = [each["pools"][0] | {"server": f"s{number}", "busy": busy} for number in range(20)]
        gateway.answers["status/get"] = status(*workers)
        await screen.until(lambda busy=busy: screen.column("pools", 4)[-1:] == [str(busy)])  # type: ignore[misc]
    gateway.answers["status/get"] = status(worker("w-1"))
    await screen.until(lambda: len(screen.column("pools")) == 1)

    assert monotonic() - began < DEADLINE_S


async def test_the_screen_can_become_small_and_large_again(screen: Screen) -> None:
    await screen.pilot.resize_terminal(20, 6)
    await screen.pilot.resize_terminal(200, 60)

    assert screen.column("workers") == ["w-1"]


@pytest.mark.parametrize("key", ["q", "ctrl+c"])
async def test_it_is_left_by(view: Overview, key: str) -> None:
    app = Top(view, EVERY_S)
    async with app.run_test() as pilot:
        await pilot.press(key)
        async with asyncio.timeout(DEADLINE_S):
            while app.is_running:
                await pilot.pause(0.01)

    assert app.return_code == 0


async def test_a_key_that_is_taken_away_is_said_and_the_view_stays(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway may be told of new keys while somebody looks."""
    monkeypatch.setattr(gateway_double, "KEY", "another")
    await screen.until(lambda: "refused" in screen.said("headline"))

    assert screen.said("fault").startswith("HTTP 401")
    assert screen.column("workers") == ["w-1"]
