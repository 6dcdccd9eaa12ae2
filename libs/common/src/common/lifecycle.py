"""From SIGTERM to exit: one stop event, and a budget that bounds the drain."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any

import uvloop


def stop_on_signals() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set. A second signal while draining changes nothing: the budget bounds it."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    return stop


class Budget:
    """The seconds that a drain may still take, counted from its first moment."""

    def __init__(self, seconds: float) -> None:
        self._end = asyncio.get_running_loop().time() + seconds

    @property
    def left_s(self) -> float:
        return max(0.0, self._end - asyncio.get_running_loop().time())


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a service on uvloop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)
