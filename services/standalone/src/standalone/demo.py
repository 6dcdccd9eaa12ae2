"""The product at work on this machine, from start to stop, with every claim checked."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from client import Session, connect
from client.summary import ending
from standalone.calls import CALLS, Call, Seen
from standalone.errors import DemoFailed, Leftover
from standalone.leftovers import containers_of, processes_of
from standalone.screen import Screen
from standalone.settings import StandaloneSettings
from standalone.stack import run_stack

CALL_TIMEOUT_S: Final = 60.0
LISTED_TIMEOUT_S: Final = 60.0
POLL_S: Final = 0.05


@dataclass(frozen=True)
class Traces:
    """By what leftovers are known."""

    store: str
    leaders: Sequence[int]


async def run(settings: StandaloneSettings, screen: Screen) -> None:
    """Returns when everything was shown, checked, and stopped.

    Raises:
        StandaloneError: what was not as it should be; on its own or in a group.
    """
    begin = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="mcp-orchestrator-demo-"))
    try:
        traces = await _show(settings.model_copy(update={"port": 0, "nats_port": -1, "state_dir": folder}), screen)
        await _check_nothing_left(traces)
    except asyncio.CancelledError:
        shutil.rmtree(folder)
        raise
    shutil.rmtree(folder)  # it is kept when something fails: the logs are in it
    screen.end("no container and no process is left", time.monotonic() - begin)


async def _show(settings: StandaloneSettings, screen: Screen) -> Traces:
    begin = time.monotonic()
    screen.starting(settings.state_dir)
    async with run_stack(settings) as stack:
        async with connect(stack.url) as session:
            await _until_listed(session)
            traces = Traces(session.position.epoch, stack.pids)
            warm = await containers_of(traces.store)
            screen.started(stack.url, session.id, len(warm), time.monotonic() - begin)
            if not warm:
                raise DemoFailed("no container runs, although every server says that it is ready")
            seen = [await _call(session, call, screen) for call in CALLS]
        _check_containers(seen)
        screen.summary(seen)
        screen.stopping()
    return traces


async def _until_listed(session: Session) -> None:
    """Returns when every server of the demo is ready.

    Raises:
        DemoFailed: if one cannot be started, or none was within LISTED_TIMEOUT_S.
    """
    wanted = {call.server for call in CALLS}
    waiting: dict[str, str] = {}
    try:
        async with asyncio.timeout(LISTED_TIMEOUT_S):
            while True:
                servers = {each["name"]: each for each in await session.servers()}
                if absent := wanted - servers.keys():
                    raise DemoFailed(f"the catalog lacks {', '.join(sorted(absent))}")
                if failed := [name for name in sorted(wanted) if servers[name]["status"] == "failed"]:
                    reasons = "\n".join(f"{name}: {servers[name]['reason']}" for name in failed)
                    raise DemoFailed(f"no container of {', '.join(failed)} can be started", reasons)
                waiting = {name: servers[name]["reason"] for name in wanted if servers[name]["status"] != "ready"}
                if not waiting:
                    return
                await asyncio.sleep(POLL_S)
    except TimeoutError as exc:
        reasons = "\n".join(f"{name}: {reason}" for name, reason in sorted(waiting.items()))
        raise DemoFailed(f"not all servers are ready after {LISTED_TIMEOUT_S:g} s", reasons) from exc


async def _call(session: Session, call: Call, screen: Screen) -> Seen:
    """Show a call while it runs, then check it.

    Raises:
        DemoFailed: if it did not succeed, or not as it should.
    """
    screen.call(call)
    begin = time.monotonic()
    seen = Seen(call, [])
    try:
        async with (
            asyncio.timeout(CALL_TIMEOUT_S),
            aclosing(session.call(call.server, call.tool, call.arguments)) as events,
        ):
            async for event in events:
                seen.events.append(((time.monotonic() - begin) * 1000, event))
                screen.event(*seen.events[-1])
    except TimeoutError as exc:
        raise DemoFailed(f"{call.server} {call.tool} did not end within {CALL_TIMEOUT_S:g} s") from exc
    if not seen.result.succeeded:
        raise DemoFailed(f"{call.server} {call.tool} {ending(seen.result)}", seen.result.text)
    for check in call.checks:
        if wrong := check(seen):
            raise DemoFailed(f"{call.server} {call.tool}: {wrong}")
    return seen


def _check_containers(seen: Sequence[Seen]) -> None:
    """A session's calls of one server ran in one container, and no two servers shared one."""
    by_server: dict[str, set[str]] = {}
    for each in seen:
        by_server.setdefault(each.call.server, set()).add(each.container)
    for server, containers in by_server.items():
        if len(containers) != 1:
            raise DemoFailed(f"the calls of {server} ran in {len(containers)} containers: {', '.join(containers)}")
    if len(set.union(*by_server.values())) != len(by_server):
        raise DemoFailed("two servers shared a container")


async def _check_nothing_left(traces: Traces) -> None:
    if containers := await containers_of(traces.store):
        raise Leftover(f"{len(containers)} containers are left", "\n".join(containers))
    if processes := processes_of(traces.leaders):
        lines = "\n".join(f"{pid} {command}" for pid, command in processes.items())
        raise Leftover(f"{len(processes)} processes are left", lines)
