"""How the process of a service runs: its event loop, its garbage collection, and how large it may get.

Each setting can be had without, so that `python -m benchmarks.sessions` can measure what it is worth (docs/adr/0019).
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from time import monotonic
from typing import Any, Final, Literal

import uvloop
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from common.log import get

_log = get(__name__)

TICK_S: Final = 1.0
YOUNG_OBJECTS: Final = 20_000
"""New objects until the youngest are looked at; Python's 700 has a busy gateway look some hundred times a second."""
NEVER: Final = 1_000_000_000
DOUBLED: Final = 2.0
"""So much larger than after the last full collection a process is before it has another one."""

TYPES_SHOWN: Final = 40


class RuntimeSettings(BaseSettings):
    """Of a service's process."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", case_sensitive=False)

    event_loop: Literal["uvloop", "asyncio"] = "uvloop"
    """What runs the tasks."""
    garbage_collection: Literal["frozen", "python"] = "frozen"
    """`frozen`: what has lived for a second is looked at again only when the process's memory has doubled; `python`: as
    the interpreter does it, which stops a gateway of 10,000 sessions for a second at a time."""
    memory_ceiling_mb: int = Field(default=0, ge=0)
    """Resident MiB at which the process drains and ends, to be started anew by what supervises it; 0 is none."""
    debug_memory: bool = False
    """Serve GET /debug/memory: what the process holds, by type. Counting stops it for some seconds."""


def run(main: Coroutine[Any, Any, None], settings: RuntimeSettings | None = None) -> None:
    """Run a service until it returns; without settings, by those of the environment."""
    settings = settings or RuntimeSettings()
    loop_factory = uvloop.new_event_loop if settings.event_loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        _Keeper(runner.get_loop(), settings).wait()
        runner.run(main)


class _Keeper:
    """Looks at the process's memory once a tick, by a timer of the loop: it ends with it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, settings: RuntimeSettings) -> None:
        self._loop = loop
        self._collector = _Collector() if settings.garbage_collection == "frozen" else None
        self._ceiling = settings.memory_ceiling_mb * 1024**2

    def wait(self) -> None:
        self._loop.call_later(TICK_S, self._look)

    def _look(self) -> None:
        resident = resident_bytes()
        if self._collector:
            self._collector.look(resident)
        if self._ceiling and resident > self._ceiling:
            _log.warning("memory ceiling reached, draining", resident_mb=resident >> 20, ceiling_mb=self._ceiling >> 20)
            os.kill(os.getpid(), signal.SIGTERM)  # the drain is the one that every stop has
            return
        self.wait()


class _Collector:
    """Garbage collection whose pauses do not grow with the sessions that are held.

    A full collection looks at every object: about a second for ten thousand sessions, in which nobody is answered.
    So what is older than a tick is frozen, which costs nothing and takes it out of the collector's sight. Frozen
    garbage, such as closed connections leave, is collected when memory has doubled, which bounds it.
    """

    def __init__(self) -> None:
        gc.set_threshold(YOUNG_OBJECTS, 10, NEVER)
        self._full()

    def look(self, resident: int) -> None:
        if resident > DOUBLED * self._resident:
            self._full()
        else:
            gc.collect(1)
            gc.freeze()

    def _full(self) -> None:
        begun = monotonic()
        gc.unfreeze()
        found = gc.collect()
        gc.freeze()
        self._resident = resident_bytes()
        took_ms = round((monotonic() - begun) * 1000)
        _log.debug("full collection", found=found, took_ms=took_ms, resident_mb=self._resident >> 20)


def resident_bytes() -> int:
    """Memory of this process that is in RAM; 0 on systems that do not tell as Linux does."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except FileNotFoundError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def memory_report() -> dict[str, Any]:
    """What the process holds: `resident_bytes`, `tasks`, and `types` [{type, count}…], the most frequent first, of what
    the garbage collector knows. Takes about a second for three million objects."""
    gc.unfreeze()
    counts = Counter(f"{type(item).__module__}.{type(item).__qualname__}" for item in gc.get_objects())
    gc.freeze()
    return {
        "resident_bytes": resident_bytes(),
        "objects": counts.total(),
        "tasks": len(asyncio.all_tasks()),
        "types": [{"type": name, "count": count} for name, count in counts.most_common(TYPES_SHOWN)],
    }
