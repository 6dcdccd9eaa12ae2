"""From a signal to the end of the drain."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from common.lifecycle import EXIT_STUCK, Budget, stop_on_signals
from common.runtime import run
from tests.unit.common.bus_rig import DEADLINE_S, until


@pytest.fixture
def restored_handlers() -> Iterator[None]:
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.usefixtures("restored_handlers")
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_sets_the_stop_event_and_a_second_one_changes_nothing(signum: signal.Signals) -> None:
    """What is under way goes on to its end: the drain has its own budget."""
    seen: list[bool] = []

    async def serve() -> None:
        stop = stop_on_signals(1000)
        seen.append(stop.is_set())
        os.kill(os.getpid(), signum)
        async with asyncio.timeout(DEADLINE_S):
            await stop.wait()
        os.kill(os.getpid(), signum)
        await asyncio.sleep(0)
        seen.append(stop.is_set())

    run(serve())

    assert seen == [False, True]


STUCK = """
import asyncio, signal
from common import lifecycle, runtime

async def hang():
    lifecycle.stop_on_signals(0.1)
    signal.raise_signal(signal.SIGTERM)
    await asyncio.Event().wait()

runtime.run(hang())
"""


def test_a_process_that_does_not_end_in_its_budget_says_what_it_waits_for_and_ends() -> None:
    """Whoever stops it is not kept waiting, and whoever looks for the cause finds it in the log."""
    ended = subprocess.run(
        [sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )

    assert ended.returncode == EXIT_STUCK
    assert "not stopped in time" in ended.stdout
    assert "hang" in ended.stdout


async def test_a_budget_shrinks_to_nothing_and_not_below() -> None:
    """What is left is a timeout, so it never is negative."""
    budget, none = Budget(1000), Budget(0)
    first = budget.left_s
    await until(lambda: budget.left_s != first)

    assert 900 < budget.left_s < first <= 1000
    assert none.left_s == 0
