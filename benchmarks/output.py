"""How fast a job's output reaches its client, how much of the engine's own pace that is, and what it costs in memory.

`python -m benchmarks.output --json` starts the stack (nats-server, gateway, worker, each its own process) and has one
container write, read in turn by two ways: straight over an exec of the same container (`direct`), and as
a job whose output comes through worker, object store and gateway to a WebSocket client (`gateway`). In each round a
flood of `--mib` through the gateway stands between two direct ones of half that size, so that both meet the same noise.
What is written is `--data`: `log`, lines of a log as JSON (zstd makes them about four times smaller), or `noise`, which
nothing makes smaller. Every byte is hashed on both sides, and compared with the digest that the job ends with.

Then small jobs print the time at which they write (`first_byte`).

DOCKER_HOST names the engine; the images of `make images` must be there.
"""

from __future__ import annotations

import asyncio
import hashlib
import shlex
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, time_ns
from typing import Any

import uvloop
from aiodocker import Docker

from benchmarks import command
from benchmarks.engine import open_docker
from benchmarks.memory import watching
from client import Event, Session, connect
from standalone.settings import StandaloneSettings
from standalone.stack import run_stack

CATALOG = """
servers:
  shell: {kind: exec, scope: session, image: "mcp-orchestrator/time:local"}
"""
MIB = 1024 * 1024
BLOCK = "/tmp/block"
BLOCK_BYTES = 8 * MIB
BLOCKS = {
    "log": """
import json, random, sys
chance = random.Random(1)
size, whole = 0, 8 << 20
while size < whole:
    entry = {
        "ts": 1795600000 + size / 1000,
        "level": chance.choice(["info", "info", "info", "warning", "error"]),
        "msg": f"job {chance.randrange(10**6)} ended in {chance.randrange(1000)} ms",
        "trace": f"{chance.getrandbits(64):016x}",
    }
    line = json.dumps(entry) + "\\n"
    sys.stdout.write(line[: whole - size])
    size += len(line)
""",
    "noise": """
import random, sys
chance = random.Random(1)
for _ in range(8):
    sys.stdout.buffer.write(chance.getrandbits(8 << 20).to_bytes(1 << 20, "big"))
""",
}
"""Python that writes 8 MiB, the same ones wherever it runs; a flood is these over and over."""
MOST_MIB = 2048
"""MAX_OUTPUT_BYTES as it is by default."""
WARM_UP_MIB = 16


@dataclass(frozen=True)
class Flood:
    """One stream that was read to its end."""

    size: int
    sha256: str
    seconds: float
    container: str = ""


def writes(size: int) -> str:
    """A pipe of two, as commands mostly are."""
    return f"cat $(yes {BLOCK} | head -n {size // BLOCK_BYTES + 1}) | head -c {size}"


async def block_of(data: str) -> bytes:
    """The same in this process's Python: what the floods are compared with."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", BLOCKS[data], stdout=asyncio.subprocess.PIPE)
    block, _ = await process.communicate()
    return block


async def flood_direct(docker: Docker, container: str, size: int) -> Flood:
    digest = hashlib.sha256()
    count = 0
    begun = perf_counter()
    execution = await docker.containers.container(container).exec(["/bin/sh", "-c", writes(size)], stdin=False)
    async with execution.start(detach=False) as stream:
        while (message := await stream.read_out()) is not None:
            digest.update(message.data)
            count += len(message.data)
    return Flood(count, digest.hexdigest(), perf_counter() - begun)


async def flood_gateway(session: Session, size: int) -> Flood:
    digest = hashlib.sha256()
    count = 0
    container = ""
    begun = perf_counter()
    async for event in job(session, writes(size)):
        if event.type == "started":
            container = str(event.data["container"])
        elif event.type == "output":
            data = event.data
            if data["offset"] != count:
                raise SystemExit(f"output goes on at byte {data['offset']} after {count} bytes")
            piece = data["text"].encode() if "text" in data else data["data"]
            digest.update(piece)
            count += len(piece)
    seconds = perf_counter() - begun
    told = event.data["output"]["stdout"]
    if told != {**told, "size": count, "sha256": digest.hexdigest()}:
        raise SystemExit(f"the job ended with {told}, its events were {count} bytes, sha256 {digest.hexdigest()}")
    return Flood(count, digest.hexdigest(), seconds, container)


async def job(session: Session, command: str) -> AsyncIterator[Event]:
    """The events of a command, up to its end, which has to be a good one."""
    async with aclosing(session.call("shell", "run", {"command": command})) as events:
        async for event in events:
            if event.terminal and event.data["outcome"] != "succeeded":
                raise SystemExit(f"the job failed: {event.data}")
            yield event


async def first_byte(session: Session) -> float:
    """Milliseconds from the command's write to its event at the client. The command goes on for a moment after it, so
    that it is not its end that moves the line along."""
    elapsed = None
    async for event in job(session, "date +%s%N; sleep 0.05"):
        if event.type == "output" and elapsed is None:
            elapsed = (time_ns() - int(event.data["text"])) / 1e6
    if elapsed is None:
        raise SystemExit("the command's line did not come as an event")
    return elapsed


async def measure(data: str, mib: int, rounds: int, calls: int) -> dict[str, Any]:
    size = mib * MIB
    block = await block_of(data)
    with tempfile.TemporaryDirectory(prefix="orchestrator-bench-") as folder:
        servers_file = Path(folder) / "servers.yaml"
        servers_file.write_text(CATALOG)
        settings = StandaloneSettings(port=0, state_dir=Path(folder), servers_file=servers_file, log_level="warning")
        async with (
            open_docker() as docker,
            run_stack(settings) as stack,
            connect(stack.url, protocol="mcp.msgpack") as session,
        ):
            _, gateway, worker = stack.pids
            async for _ in job(session, f"python3 -c {shlex.quote(BLOCKS[data])} >{BLOCK}"):
                pass  # the block stays in the session's container
            container = (await flood_gateway(session, WARM_UP_MIB * MIB)).container
            direct, through = [], []
            async with watching([gateway, worker]) as (gateway_memory, worker_memory):
                for _ in range(rounds):
                    half = size // 2
                    direct.append(await flood_direct(docker, container, half))
                    through.append(await flood_gateway(session, size))
                    direct.append(await flood_direct(docker, container, size - half))
            compare(direct, size, block)
            compare(through, size, block)
            first_bytes = [await first_byte(session) for _ in range(calls)]
    mb_s, direct_mb_s = rate(through), rate(direct)
    return {
        "data": data,
        "mib": mib,
        "rounds": rounds,
        "mb_s": round(mb_s, 1),
        "direct_mb_s": round(direct_mb_s, 1),
        "ratio": round(mb_s / direct_mb_s, 3),
        "gateway_rss_growth_mb": gateway_memory.growth,
        "worker_rss_growth_mb": worker_memory.growth,
        "first_byte_ms": round(statistics.median(first_bytes), 3),
        "sha256": through[0].sha256,
    }


def compare(floods: list[Flood], size: int, block: bytes) -> None:
    """Every flood is what its command writes."""
    for flood in floods:
        expected = sha256_of(block, flood.size)
        if flood.sha256 != expected or flood.size not in (size, size // 2, size - size // 2):
            raise SystemExit(f"{flood} is not what was written: sha256 {expected}, {size} bytes")


def sha256_of(block: bytes, size: int) -> str:
    """Of so many bytes of the block, over and over."""
    digest = hashlib.sha256()
    for _ in range(size // len(block)):
        digest.update(block)
    digest.update(block[: size % len(block)])
    return digest.hexdigest()


def rate(floods: list[Flood]) -> float:
    """Of all together, in 10^6 bytes a second."""
    return sum(flood.size for flood in floods) / sum(flood.seconds for flood in floods) / 1e6


def main() -> None:
    parser = command.parser("output", __doc__)
    parser.add_argument("--data", choices=BLOCKS, default="log", help="what is written (default: %(default)s)")
    parser.add_argument("--mib", type=int, default=1024, help="size of one job's output in MiB (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="floods by each way (default: %(default)s)")
    parser.add_argument("--calls", type=int, default=20, help="small jobs for first_byte_ms (default: %(default)s)")
    options = parser.parse_args()
    command.require_at_least(1, parser, options, "mib", "rounds", "calls")
    if options.mib > MOST_MIB:
        parser.error(f"--mib must be at most {MOST_MIB}, which is all that one job may write")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        figures = runner.run(measure(options.data, options.mib, options.rounds, options.calls))
    command.print_figures(figures, options)


if __name__ == "__main__":
    main()
