"""What each durability level costs at the store: publishes that wait for their acknowledgement.

`python -m benchmarks.durability --json` starts one nats-server at each level, on this machine's disk (`--folder`),
and stores events of 256 bytes in SESSIONS the way the services do. The levels take turns, so that the machine's
noise spreads over both. Each round first publishes one after the other (latency), then 64 at a time (throughput).
The disk decides: `sync_p50_ms` is what one fdatasync of 256 bytes takes in the same folder.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from time import perf_counter
from typing import Any, get_args

import uvloop

from benchmarks import command
from benchmarks.command import percentile
from common.bus import Bus, connect
from common.schema import Event, now_ms
from common.settings import BusSettings, DurabilityLevel
from standalone.nats_server import run_nats_server

IN_FLIGHT = 64
TEXT = "x" * 256
LEVELS: tuple[DurabilityLevel, ...] = get_args(DurabilityLevel)


class Publishing:
    """Events of ever new jobs on one store; `latencies` and `seconds` grow with each round."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._count = 0
        self.latencies: list[float] = []
        self.published = 0
        self.seconds = 0.0

    async def one_by_one(self, count: int) -> None:
        for _ in range(count):
            begun = perf_counter()
            await self._publish()
            self.latencies.append((perf_counter() - begun) * 1000)

    async def together(self, count: int) -> None:
        begun = perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(IN_FLIGHT):
                tasks.create_task(self._publish_many(count // IN_FLIGHT))
        self.seconds += perf_counter() - begun
        self.published += count // IN_FLIGHT * IN_FLIGHT

    async def _publish_many(self, count: int) -> None:
        for _ in range(count):
            await self._publish()

    async def _publish(self) -> None:
        self._count += 1
        event = Event(
            job=f"j{self._count}", session="s", attempt=1, type="output", time_ms=now_ms(), data={"text": TEXT}
        )
        await self._bus.publish_event(event, expected=0)


def sync_times(folder: Path, count: int) -> list[float]:
    """Milliseconds of an append of 256 bytes with its fdatasync."""
    took = []
    with (folder / "synced").open("wb", buffering=0) as file:
        for _ in range(count):
            begun = perf_counter()
            file.write(TEXT.encode())
            os.fdatasync(file.fileno())
            took.append((perf_counter() - begun) * 1000)
    return took


async def measure(folder: Path, rounds: int, single: int, together: int) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        levels: dict[DurabilityLevel, Publishing] = {}
        for level in LEVELS:
            server = await stack.enter_async_context(run_nats_server(folder / level, durability=level))
            bus = await stack.enter_async_context(connect(BusSettings(nats_url=server.url), "benchmark"))
            levels[level] = Publishing(bus)
        for publishing in levels.values():
            await publishing.one_by_one(100)  # warm
            publishing.latencies.clear()
        for _ in range(rounds):
            for publishing in levels.values():
                await publishing.one_by_one(single)
            for publishing in levels.values():
                await publishing.together(together)
    figures: dict[str, Any] = {"sync_p50_ms": percentile(sync_times(folder, 500), 50)}
    for level, publishing in levels.items():
        figures[f"{level}_p50_ms"] = percentile(publishing.latencies, 50)
        figures[f"{level}_p99_ms"] = percentile(publishing.latencies, 99)
        figures[f"{level}_per_s"] = round(publishing.published / publishing.seconds)
    return figures


def main() -> None:
    parser = command.parser("durability", __doc__)
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk to measure (default: here)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each level (default: %(default)s)")
    parser.add_argument("--single", type=int, default=500, help="publishes one by one a round (default: %(default)s)")
    parser.add_argument("--together", type=int, default=6400, help="publishes 64 at a time (default: %(default)s)")
    options = parser.parse_args()
    command.require_at_least(1, parser, options, "rounds", "single")
    command.require_at_least(IN_FLIGHT, parser, options, "together")
    with (
        tempfile.TemporaryDirectory(prefix=".benchmark-", dir=options.folder) as folder,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        figures = runner.run(measure(Path(folder), options.rounds, options.single, options.together))
    command.print_figures(figures, options)


if __name__ == "__main__":
    main()
