"""What a running call tells, on its way to the store: bounded, in order."""

from __future__ import annotations

import asyncio
from typing import Any

from common.errors import Fenced, PayloadTooLarge
from common.log import get
from common.schema import EventType, now_ms
from worker.journal import Journal

_log = get(__name__)

WAITING_EVENTS = 32


class Outbox:
    """One attempt's events before its result. `pump()` must run; it ends after `close()`, when all is stored.

    While the attempt tells nothing, its `started` is stored again every `repeat_s` seconds: were it past the resume
    window, nobody would know any more that the job had started.
    """

    def __init__(self, journal: Journal, repeat_s: float) -> None:
        self._journal = journal
        self._repeat_s = repeat_s
        self._started: dict[str, Any] = {}
        self._since_ms = 0
        self._waiting: asyncio.Queue[tuple[EventType, dict[str, Any]] | None] = asyncio.Queue(WAITING_EVENTS)
        self._ended = False
        self.told_at = asyncio.get_running_loop().time()
        """When the tool last told something, or was about to begin; by the loop's clock."""
        self.started_settled = asyncio.Event()
        """Set when `started` is stored, or never will be."""

    def started(self, data: dict[str, Any]) -> None:
        """The first event of an attempt."""
        self._since_ms = now_ms()
        self._started = data | {"since_ms": self._since_ms}
        self._waiting.put_nowait(("started", data))

    async def started_elsewhere(self, data: dict[str, Any]) -> None:
        """The call goes to another container than was told. Returns when that is stored, or never will be.

        Nothing else may be waiting: no call has been begun.
        """
        await self.started_settled.wait()
        if self._ended:
            return
        self.started_settled.clear()
        self._started = data | {"since_ms": self._since_ms}
        self._waiting.put_nowait(("started", self._started))
        await self.started_settled.wait()

    def progress(self, data: dict[str, Any]) -> None:
        """Never waits. A tool that reports faster than the store takes it loses reports in between: each one
        supersedes the one before."""
        self.told_at = asyncio.get_running_loop().time()
        if self._waiting.qsize() < WAITING_EVENTS - 1:  # the last place is kept for close()
            self._waiting.put_nowait(("progress", data))

    async def output(self, stream: str, text: str) -> None:
        """Waits while the store is behind: so the tool is slowed instead of this process growing."""
        self.told_at = asyncio.get_running_loop().time()
        if not self._ended:
            await self._waiting.put(("output", {"stream": stream, "text": text}))

    async def close(self) -> None:
        if not self._ended:
            await self._waiting.put(None)

    async def _next(self) -> tuple[EventType, dict[str, Any]] | None:
        try:
            async with asyncio.timeout(self._repeat_s):
                return await self._waiting.get()
        except TimeoutError:
            return "started", self._started

    async def pump(self) -> Fenced | None:
        """Store what comes until `close()`. Returns early, with the reason, if another worker has taken the job.

        An event that no message can hold is left out: a tool's report must not cost it its answer.
        """
        try:
            while (item := await self._next()) is not None:
                try:
                    await self._journal.append(*item)
                except PayloadTooLarge as exc:
                    _log.warning("event left out", type=item[0], reason=exc.message)
                self.started_settled.set()
        except Fenced as exc:
            return exc
        finally:
            # What comes after the end is nobody's: writers must neither wait for it nor pile it up.
            self._ended = True
            self.started_settled.set()
            while not self._waiting.empty():
                self._waiting.get_nowait()
        return None
