"""What a tool call costs, and how much of that is ours.

`python -m benchmarks.call --json` starts the stack (nats-server, gateway, worker, each its own process), then
calls the same tool of the same warm container in turn by two ways: straight over a second attachment to the
container (`direct`), and as a WebSocket client through gateway, JetStream and worker (`gateway`). Taking turns
spreads the machine's noise over both. Then it measures getting a container: from a warm pool (`acquire`, as the
worker times it, one-use containers) and a call that has to wait for a cold start (`cold`, as the client sees it).

`--durability power` has the store sync to disk before it acknowledges, which every call then waits for.

DOCKER_HOST names the engine; the images of `make images` must be there.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, get_args

import uvloop
from aiodocker.stream import Stream

from benchmarks import command
from benchmarks.command import percentile
from benchmarks.engine import open_docker
from client import JobResult, Session, connect
from common.settings import DurabilityLevel
from standalone.settings import StandaloneSettings
from standalone.stack import run_stack

CATALOG = """
servers:
  warm: {image: "mcp-orchestrator/time:local", pool: {min: 1, max: 1}}
  spare: {image: "mcp-orchestrator/time:local", scope: call, pool: {min: 2, max: 4}}
  cold: {image: "mcp-orchestrator/time:local", scope: call, pool: {min: 0, max: 4}}
"""
TOOL = "get_current_time"
ARGUMENTS = {"timezone": "UTC"}
WARM_UP = 50


class Direct:
    """A second client of a container's stdio, beside the worker's: no bus, no gateway."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._buffer = bytearray()
        self._number = 0

    async def call(self) -> None:
        self._number += 1
        # The worker's ids are numbers, so that it passes over answers to a text one.
        request_id = f"direct-{self._number}"
        meta = {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {},
            "io.modelcontextprotocol/clientInfo": {"name": "benchmark", "version": "1"},
        }
        params = {"name": TOOL, "arguments": ARGUMENTS, "_meta": meta}
        request = {"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": params}
        await self._stream.write_in(json.dumps(request).encode() + b"\n")
        while True:
            line = await self._line()
            answer = json.loads(line)
            if answer.get("id") == request_id:
                if "result" not in answer or answer["result"].get("isError"):
                    raise SystemExit(f"the tool failed: {answer}")
                return

    async def _line(self) -> bytes:
        while (end := self._buffer.find(b"\n")) < 0:
            frame = await self._stream.read_out()
            if frame is None:
                raise SystemExit("the container ended")
            if frame.stream == 1:
                self._buffer += frame.data
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line


@asynccontextmanager
async def attached(container: str) -> AsyncIterator[Direct]:
    async with (
        open_docker() as docker,
        docker.containers.container(container).attach(stdin=True, stdout=True, stderr=True) as stream,
    ):
        yield Direct(stream)


async def measured(session: Session, server: str) -> tuple[float, JobResult]:
    """One call through everything: milliseconds to its terminal event."""
    begun = perf_counter()
    result = await session.run(server, TOOL, ARGUMENTS)
    elapsed = (perf_counter() - begun) * 1000
    if result.outcome != "succeeded":
        raise SystemExit(f"the call failed: {result}")
    return elapsed, result


async def container_of(session: Session, server: str) -> str:
    async with aclosing(session.call(server, TOOL, ARGUMENTS)) as events:
        async for event in events:
            if event.type == "started":
                return str(event.data["container"])
    raise SystemExit("the call did not start")


async def acquisitions(session: Session, count: int) -> list[float]:
    """Waits for a container that was ready, in milliseconds; the pool gets time to refill between calls."""
    waits: list[float] = []
    while len(waits) < count:
        _, result = await measured(session, "spare")
        if result.ran["warm"]:
            waits.append(result.timings["container_ms"])
        await refilled(session)
    return waits


async def refilled(session: Session) -> None:
    async with asyncio.timeout(30):
        while True:
            status = await session.status()
            ready = [p["ready"] for worker in status["workers"] for p in worker["pools"] if p["server"] == "spare"]
            if sum(ready) >= 2:
                return


async def measure(calls: int, acquires: int, colds: int, durability: DurabilityLevel) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="orchestrator-bench-") as folder:
        servers_file = Path(folder) / "servers.yaml"
        servers_file.write_text(CATALOG)
        settings = StandaloneSettings(
            port=0,
            state_dir=Path(folder),
            servers_file=servers_file,
            durability=durability,
            log_level="warning",
        )
        async with run_stack(settings) as stack, connect(stack.url) as session:
            direct_ms, gateway_ms = [], []
            async with attached(await container_of(session, "warm")) as direct:
                for number in range(WARM_UP + calls):
                    begun = perf_counter()
                    await direct.call()
                    direct_elapsed = (perf_counter() - begun) * 1000
                    gateway_elapsed, _ = await measured(session, "warm")
                    if number >= WARM_UP:
                        direct_ms.append(direct_elapsed)
                        gateway_ms.append(gateway_elapsed)
            acquire_ms = await acquisitions(session, acquires)
            cold_ms = [(await measured(session, "cold"))[0] for _ in range(colds)]
    return {
        "durability": durability,
        "calls": calls,
        "direct_p50_ms": percentile(direct_ms, 50),
        "direct_p99_ms": percentile(direct_ms, 99),
        "gateway_p50_ms": percentile(gateway_ms, 50),
        "gateway_p99_ms": percentile(gateway_ms, 99),
        "overhead_p50_ms": round(percentile(gateway_ms, 50) - percentile(direct_ms, 50), 3),
        "acquire_p50_ms": percentile(acquire_ms, 50),
        "acquire_p99_ms": percentile(acquire_ms, 99),
        "cold_p50_ms": percentile(cold_ms, 50),
    }


def main() -> None:
    parser = command.parser("call", __doc__)
    parser.add_argument("--calls", type=int, default=1000, help="warm calls by each way (default: %(default)s)")
    parser.add_argument("--acquires", type=int, default=40, help="takes from a warm pool (default: %(default)s)")
    parser.add_argument("--colds", type=int, default=10, help="cold starts (default: %(default)s)")
    parser.add_argument(
        "--durability",
        choices=get_args(DurabilityLevel),
        default="process",
        help="what an accepted call survives (default: %(default)s)",
    )
    options = parser.parse_args()
    command.require_at_least(1, parser, options, "calls", "acquires", "colds")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        figures = runner.run(measure(options.calls, options.acquires, options.colds, options.durability))
    command.print_figures(figures, options)


if __name__ == "__main__":
    main()
