"""The events of one job as this worker writes them: numbered by attempt, each fenced by the one before.

Every event is stored behind the last one that this worker knows of. So of two workers that both believe they
own a job the store accepts one, and an older attempt's late events never get in (docs/adr/0002).
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from common.bus import Bus
from common.errors import StoreUnavailable
from common.log import get
from common.schema import Event, EventType, Job, now_ms

_log = get(__name__)

RETRY_MIN_S = 0.1
RETRY_MAX_S = 5.0


class Journal:
    """Made for one attempt, behind the event with number `last_seq`."""

    def __init__(self, bus: Bus, job: Job, attempt: int, last_seq: int) -> None:
        self._bus = bus
        self._job = job
        self._attempt = attempt
        self.last_seq = last_seq
        """Number of the job's last event as far as it is ours."""
        self._writer = secrets.token_hex(6)
        """Part of every event's id, so that no other worker's event of the same attempt is taken for ours."""
        self._written = 0

    async def append(self, type_: EventType, data: dict[str, Any]) -> None:
        """Store one event, waiting out a store that is away: what a tool has told must not be lost to a blip.

        Raises:
            Fenced: if the job's last event is not ours any more.
        """
        event, msg_id = self._next(type_, data)
        await self._patiently(type_, lambda: self._bus.publish_event(event, expected=self.last_seq, msg_id=msg_id))

    async def append_all(self, events: Sequence[tuple[EventType, dict[str, Any]]]) -> None:
        """As `append()`, in one step: all of them or none."""
        numbered = [self._next(type_, data) for type_, data in events]
        together, last_id = [event for event, _ in numbered], numbered[-1][1]
        await self._patiently(
            events[-1][0], lambda: self._bus.publish_events(together, expected=self.last_seq, msg_id=last_id)
        )

    def _next(self, type_: EventType, data: dict[str, Any]) -> tuple[Event, str]:
        """The event and its id: a repeat after a lost acknowledgement carries the same one."""
        event = Event(
            job=self._job.id,
            session=self._job.session,
            attempt=self._attempt,
            type=type_,
            time_ms=now_ms(),
            data=data,
        )
        self._written += 1
        return event, f"{self._job.id}.{self._writer}.{self._written}"

    async def _patiently(self, type_: EventType, publish: Callable[[], Awaitable[int]]) -> None:
        wait_s = RETRY_MIN_S
        while True:
            try:
                self.last_seq = await publish()
                return
            except StoreUnavailable as exc:
                _log.warning("event waits for the store", type=type_, reason=exc.message)
                await asyncio.sleep(wait_s * (0.5 + random.random()))
                wait_s = min(wait_s * 2, RETRY_MAX_S)
