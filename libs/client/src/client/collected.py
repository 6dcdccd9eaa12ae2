"""A job's events taken together: which of them hold, and the answer that came in pieces."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any, Final

from client.event import Event, JobResult

WHOLE_RESULT_BYTES: Final = 8 * 1024 * 1024
"""An answer up to this size is put together from its events; of a larger one a job's result has a preview."""
RESULT: Final = "result"
"""The stream of an MCP tool's answer that is too large for one event."""


class Attempts:
    """Tells the attempts of one job apart."""

    def __init__(self) -> None:
        self._current = 0

    def begins_anew(self, event: Event) -> bool:
        """Does this event make void what came before it?

        A `started` with `since_ms` repeats that of the attempt that goes on, and voids nothing.
        """
        higher = event.attempt > self._current > 0
        self._current = max(self._current, event.attempt)
        discards = event.type == "started" and event.data.get("discard") is True and "since_ms" not in event.data
        return higher or discards or event.type == "retrying"


class Collected:
    """`take()` every event of one job in order. Holds at most WHOLE_RESULT_BYTES."""

    def __init__(self) -> None:
        self._attempts = Attempts()
        self._bytes = bytearray()

    def take(self, event: Event) -> None:
        if self._attempts.begins_anew(event):
            self._bytes.clear()
        if event.type != "output" or event.data.get("stream") != RESULT:
            return
        data = event.output_bytes
        # What does not join on is of no use, and nor is what comes after it; the digest finds it out in the end.
        if event.data.get("offset") == len(self._bytes) and len(self._bytes) + len(data) <= WHOLE_RESULT_BYTES:
            self._bytes += data

    def result(self, event: Event) -> JobResult:
        """How the job ended, by its terminal event: with the whole answer where it came in pieces and all are here."""
        result = JobResult.from_event(event)
        whole = self._whole(result.output.get(RESULT) or {})
        return result if whole is None else replace(result, result=whole)

    def _whole(self, told: dict[str, Any]) -> dict[str, Any] | None:
        if not told or told.get("size") != len(self._bytes):
            return None
        if told.get("sha256") != hashlib.sha256(self._bytes).hexdigest():
            return None
        try:
            whole = json.loads(self._bytes)
        except ValueError:
            return None
        return whole if isinstance(whole, dict) else None
