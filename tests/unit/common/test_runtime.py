"""How a service's process runs: its collector, its ceiling, and what it tells of its memory."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Iterator

import pytest

from common import runtime
from common.runtime import RuntimeSettings, memory_report


@pytest.fixture
def python_collector() -> Iterator[None]:
    """Other tests of this process have Python's own again."""
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


def run_service(body: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A program that runs `serve(stop)` as a service does."""
    program = f"""
import asyncio, gc
from common import lifecycle, log, runtime

async def serve(stop):
{textwrap.indent(textwrap.dedent(body), "    ")}

async def main():
    await serve(lifecycle.stop_on_signals(20))

log.configure("info", "json", service="test")
runtime.run(main())
"""
    return subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=50)


class Cycle:
    def __init__(self) -> None:
        self.me = self


@pytest.mark.usefixtures("python_collector")
def test_garbage_of_what_was_frozen_is_collected_when_memory_has_doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before: a full collection is what stops a large process."""
    resident = 100
    monkeypatch.setattr(runtime, "resident_bytes", lambda: resident)
    collector = runtime._Collector()
    cycle = Cycle()
    dead = weakref.ref(cycle)
    collector.look(resident)
    del cycle

    collector.look(2 * resident)
    assert dead() is not None
    collector.look(2 * resident + 1)
    assert dead() is None


@pytest.mark.usefixtures("python_collector")
def test_young_garbage_is_collected_at_every_tick() -> None:
    """What dies young never gets as far as to be frozen."""
    collector = runtime._Collector()
    cycle = Cycle()
    dead = weakref.ref(cycle)
    del cycle

    collector.look(1)

    assert dead() is None


def test_a_process_at_its_memory_ceiling_drains_as_on_sigterm() -> None:
    """And says why; what supervises it starts it anew."""
    ended = run_service("await stop.wait(); print('drained', flush=True)", MEMORY_CEILING_MB="1")

    assert ended.returncode == 0, ended.stderr
    assert "drained" in ended.stdout
    assert "memory ceiling reached" in ended.stdout + ended.stderr


@pytest.mark.parametrize(("given", "module"), [("uvloop", "uvloop"), ("asyncio", "asyncio")])
def test_the_event_loop_is_the_one_that_was_asked_for(given: str, module: str) -> None:
    """By the module of its class."""
    ended = run_service("print(type(asyncio.get_running_loop()).__module__.split('.')[0])", EVENT_LOOP=given)

    assert ended.stdout.split() == [module], ended.stderr


def test_pythons_own_collection_can_be_had() -> None:
    """To measure what ours is worth."""
    ended = run_service("print(*gc.get_threshold(), gc.get_freeze_count())", GARBAGE_COLLECTION="python")
    ours = run_service("print(gc.get_threshold()[2] > 10**6, gc.get_freeze_count() > 1000)")

    assert ended.stdout.split() == ["700", "10", "10", "0"], ended.stderr
    assert ours.stdout.split() == ["True", "True"], ours.stderr


async def test_a_memory_report_counts_what_is_held_by_type() -> None:
    """The most frequent types first."""
    held = [Cycle() for _ in range(1_000_000 // 10)]

    report = memory_report()

    counts = {row["type"]: row["count"] for row in report["types"]}
    assert counts[f"{__name__}.Cycle"] >= len(held)
    assert report["objects"] >= len(held)
    assert report["resident_bytes"] > 1_000_000
    assert report["tasks"] >= 1


def test_a_ceiling_below_nothing_is_refused() -> None:
    """Zero is none."""
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        RuntimeSettings(memory_ceiling_mb=-1)
