"""From SIGTERM to exit: one stop event, and a budget that bounds the drain."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Final

from common.log import get

_log = get(__name__)


EXIT_STUCK: Final = 70


def stop_on_signals(budget_s: float) -> asyncio.Event:
    """An event that SIGTERM and SIGINT set. A second signal while draining changes nothing: the budget bounds it.

    A process that has not ended `budget_s` after the first signal says what each of its tasks waits for, and ends.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if not stop.is_set():
            stop.set()
            loop.call_later(budget_s, _end_stuck_process, budget_s)

    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, on_signal)
    return stop


def _end_stuck_process(budget_s: float) -> None:
    waiting = []
    for task in asyncio.all_tasks():
        frames = [f"{frame.f_code.co_filename}:{frame.f_lineno}" for frame in task.get_stack(limit=5)]
        waiting.append(f"{task.get_coro().__qualname__}: {' < '.join(reversed(frames))}")  # type: ignore[union-attr]
    _log.error("not stopped in time, ending", budget_s=budget_s, tasks=waiting)
    os._exit(EXIT_STUCK)


class Budget:
    """The seconds that a drain may still take, counted from its first moment."""

    def __init__(self, seconds: float) -> None:
        self._end = asyncio.get_running_loop().time() + seconds

    @property
    def left_s(self) -> float:
        return max(0.0, self._end - asyncio.get_running_loop().time())
