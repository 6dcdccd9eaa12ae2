"""The lines that jobs leave in the log, as a test in the same process sees them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, Final

from structlog.testing import capture_logs

DEADLINE_S: Final = 20.0

Line = MutableMapping[str, Any]


class JobLines:
    def __init__(self, logged: list[Line]) -> None:
        self._logged = logged

    def of(self, job: str) -> list[Line]:
        return [line for line in self._logged if line["event"] == "job ended" and line["job"] == job]

    async def the_one_of(self, job: str) -> Line:
        """Once it is there: it comes a moment after the event that it tells."""
        async with asyncio.timeout(DEADLINE_S):
            while not (found := self.of(job)):
                await asyncio.sleep(0.005)
        [line] = found
        return line


@contextmanager
def job_lines() -> Iterator[JobLines]:
    with capture_logs() as logged:
        yield JobLines(logged)
