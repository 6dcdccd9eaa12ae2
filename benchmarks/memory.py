"""What a process holds in memory, and the most that it held meanwhile. MiB of resident memory, on Linux."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

SAMPLE_S = 0.1


class Memory:
    """Of one process. Made by `watching()`."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self.before = self._read("VmRSS")
        self.peak = self.before
        self._field = "VmHWM" if _peak_forgotten(pid) else "VmRSS"

    @property
    def growth(self) -> float:
        """The most that it held since the beginning, beyond what it held then."""
        return round(self.peak - self.before, 1)

    def look(self) -> None:
        self.peak = max(self.peak, self._read(self._field))

    def _read(self, field: str) -> float:
        for line in self._status.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / 1024
        raise RuntimeError(f"{self._status} has no {field}: the process has ended")


@asynccontextmanager
async def watching(pids: Iterable[int]) -> AsyncIterator[list[Memory]]:
    """The memory of these processes while the context is open."""
    watched = [Memory(pid) for pid in pids]

    async def look() -> None:
        while True:
            await asyncio.sleep(SAMPLE_S)
            for memory in watched:
                memory.look()

    looking = asyncio.create_task(look())
    try:
        yield watched
        for memory in watched:
            memory.look()
    finally:
        looking.cancel()
        await asyncio.wait({looking})


def _peak_forgotten(pid: int) -> bool:
    """The kernel counts the peak from now on. Without the right to ask for that, samples have to do."""
    try:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    except OSError:
        return False
    return True
