"""How many sessions one gateway holds, what each costs, and how they come back when it dies.

`python -m benchmarks.sessions --json` starts nats-server, a worker with a warm container and two gateways, each its own
process. To the first gateway it opens 100, 1,000, 5,000 and 10,000 WebSocket sessions; each makes a call when it has
opened. At each of these numbers 1 % of the sessions are active: an active one makes a call, and `PAUSE_S` after its
result the next session takes its place. At the largest number the sessions rest for a while (`idle_cpu_percent`), then
1 % make a call each and the gateway is killed under them: all sessions go to the other gateway and resume.

`errors` counts what a user would have seen fail: a session that could not be opened or resumed, a call that failed.
`lost` counts events: a call's without its result, one that came twice or out of order, a gap that the store could not
fill. `kb_per_session` is the growth of the gateway's resident memory from its start to the largest number (KiB).

DOCKER_HOST names the engine; the images of `make images` must be there. Each session is a socket in the gateway and one
here: the limit of open files has to be above the largest number.
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
import signal
import sys
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import uvloop
from tests.ports import free_port

from benchmarks import command
from benchmarks.command import percentile
from benchmarks.light_client import Broken, Call, LightClient, Lost
from common import catalog, registry
from common.bus import connect
from common.settings import BusSettings
from standalone.nats_server import NatsServer, run_nats_server
from standalone.probe import wait_until_ready
from standalone.process import Child, run_process

CATALOG = """
servers:
  warm: {image: "mcp-orchestrator/time:local", pool: {min: 1, max: 1}}
"""
CALL = ("warm", "get_current_time", {"timezone": "UTC"})
LEVELS = (100, 1_000, 5_000, 10_000)
ACTIVE = 0.01
PAUSE_S = 1.0
"""Of an active session between a result and the next call: an agent thinks."""
MEASURED_S = 20.0
FEWEST_CALLS = 60
"""At the small levels it takes longer than `MEASURED_S` until a 99th percentile means anything."""
IDLE_S = 10.0
SETTLE_S = 2.0
OPENING_AT_ONCE = 64
"""Below the limits of calls in flight and a second that a tenant has by default."""
CALL_DEADLINE_S = 60.0
RECONNECT_DEADLINE_S = 120.0
FIRST_DELAY_S, LAST_DELAY_S = 0.1, 3.0
"""Of the tries to come back: as the client library's."""
SPARE_FILES = 500


@dataclass(frozen=True)
class Gateway:
    port: int
    child: Child


@dataclass(frozen=True)
class System:
    nats: NatsServer
    first: Gateway
    second: Gateway


@asynccontextmanager
async def running_system(folder: Path) -> AsyncIterator[System]:
    async with AsyncExitStack() as stack:
        nats = await stack.enter_async_context(run_nats_server(folder / "nats"))
        settings = {"nats_url": nats.url, "nats_monitor_url": nats.monitor_url, "nats_replicas": 1}
        servers_file = folder / "servers.yaml"
        servers_file.write_text(CATALOG)
        async with connect(BusSettings(**settings), "benchmark") as bus:  # type: ignore[arg-type]
            await registry.apply(bus, catalog.read(servers_file))
        shared = {
            **os.environ,
            **{name.upper(): str(value) for name, value in settings.items()},
            "LOG_LEVEL": "warning",
        }

        async def start(name: str, module: str, ready_at: int, env: dict[str, str]) -> Child:
            argv = [sys.executable, "-m", module]
            child = await stack.enter_async_context(
                run_process(name, argv, log=folder / f"{name}.log", env={**shared, **env}, stop_timeout_s=40)
            )
            await wait_until_ready(name, "127.0.0.1", ready_at, 60, child)
            return child

        health = free_port()
        await start("worker", "worker", health, {"HEALTH_PORT": str(health)})
        gateways = []
        for name in ("first", "second"):
            port = free_port()
            gateways.append(Gateway(port, await start(name, "gateway", port, {"PORT": str(port)})))
        yield System(nats, *gateways)


class Users:
    """All sessions, their calls, and what went wrong."""

    def __init__(self) -> None:
        self.clients: list[LightClient] = []
        self.errors: list[str] = []

    async def open(self, count: int, port: int) -> float:
        """Open sessions until there are `count`; each makes a call. Returns seconds for the sockets and sessions."""
        opened = [LightClient() for _ in range(count - len(self.clients))]
        begun = perf_counter()
        await self._each(opened, lambda client: client.connect(port))
        took = perf_counter() - begun
        self.clients += [client for client in opened if client.connected]
        await self._each([client for client in opened if client.connected], self._call)
        return took

    async def active(self, least_s: float) -> list[float]:
        """Calls of 1 % of the sessions, each in its turn. Milliseconds of each call."""
        turns = deque(random.sample(self.clients, len(self.clients)))
        at_once = max(1, round(len(self.clients) * ACTIVE))
        until = perf_counter() + max(least_s, FEWEST_CALLS * PAUSE_S / at_once)
        took_ms: list[float] = []

        async def act(number: int) -> None:
            await asyncio.sleep(PAUSE_S * number / at_once)
            while perf_counter() < until:
                client = turns.popleft()
                took = await self._call(client)
                turns.append(client)
                if took is not None:
                    took_ms.append(took)
                await asyncio.sleep(PAUSE_S)

        async with asyncio.TaskGroup() as tasks:
            for number in range(at_once):
                tasks.create_task(act(number))
        return took_ms

    async def move(self, dead: Gateway, port: int) -> float:
        """Kill the gateway while 1 % of the sessions wait for a result; all come back at `port`. Returns the seconds
        until the last has."""
        busy = random.sample(self.clients, max(1, round(len(self.clients) * ACTIVE)))
        async with asyncio.TaskGroup() as tasks:
            results = [tasks.create_task(self._call_through(client)) for client in busy]
            await asyncio.sleep(0.02)  # some are accepted, some have started, some are on their way
            os.kill(dead.child.pid, signal.SIGKILL)
            begun = perf_counter()
            back = [tasks.create_task(self._return(client, port)) for client in self.clients]
            await asyncio.wait(back)
            took = perf_counter() - begun
            await asyncio.wait(results)
        return took

    async def _each(self, clients: Iterable[LightClient], act: Any) -> None:
        room = asyncio.Semaphore(OPENING_AT_ONCE)

        async def one(client: LightClient) -> None:
            async with room:
                try:
                    async with asyncio.timeout(CALL_DEADLINE_S):
                        await act(client)
                except (OSError, Lost, Broken, TimeoutError) as exc:
                    self.errors.append(f"{type(exc).__name__}: {exc}")

        async with asyncio.TaskGroup() as tasks:
            for client in clients:
                tasks.create_task(one(client))

    async def _call(self, client: LightClient) -> float | None:
        try:
            async with asyncio.timeout(CALL_DEADLINE_S):
                return await client.call(*CALL)
        except (Lost, Broken, TimeoutError) as exc:
            self.errors.append(f"{type(exc).__name__}: {exc}")
            return None

    async def _call_through(self, client: LightClient) -> None:
        """A call that outlives the gateway: sent again once there is another, if it was not accepted."""
        try:
            async with asyncio.timeout(RECONNECT_DEADLINE_S):
                try:
                    await client.call(*CALL)
                except Lost:
                    call = client.pending
                    assert call is not None
                    await self._repeat(client, call)
        except (Broken, TimeoutError) as exc:
            self.errors.append(f"{type(exc).__name__}: {exc}")

    async def _repeat(self, client: LightClient, call: Call) -> None:
        while not call.done.done():
            if client.connected:
                try:
                    await client.repeat(*CALL)
                    await call.done
                except Lost:
                    continue
            await asyncio.sleep(0.05)

    async def _return(self, client: LightClient, port: int) -> None:
        """As the client library comes back: at once after a jitter, then ever more seldom."""
        delay_s = FIRST_DELAY_S
        until = perf_counter() + RECONNECT_DEADLINE_S
        while True:
            await asyncio.sleep(random.uniform(0, delay_s))
            try:
                async with asyncio.timeout(CALL_DEADLINE_S):
                    await client.connect(port)
                return
            except (OSError, Lost, TimeoutError) as exc:
                if perf_counter() > until:
                    self.errors.append(f"not back: {exc}")
                    return
            except Broken as exc:
                self.errors.append(f"refused: {exc}")
                return
            delay_s = min(delay_s * 2, LAST_DELAY_S)

    @property
    def faults(self) -> list[str]:
        pending = [f"no result: {client.pending.events}" for client in self.clients if client.pending]
        return [fault for client in self.clients for fault in client.faults] + pending


def resident_kb(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise RuntimeError(f"process {pid} has ended")


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def percent_of_core(spent_s: float, passed_s: float) -> float:
    return round(spent_s / passed_s * 100, 1)


async def idle_cpu_percent(pid: int) -> float:
    """Of one core, while no session does anything."""
    before = cpu_s(pid)
    await asyncio.sleep(IDLE_S)
    return percent_of_core(cpu_s(pid) - before, IDLE_S)


def allow_files(sessions: int) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = sessions + SPARE_FILES
    if most != resource.RLIM_INFINITY and most < needed:
        raise SystemExit(f"{sessions} sessions need {needed} open files, the limit is {most}: raise it (ulimit -n)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed if most == resource.RLIM_INFINITY else most, most))


async def measure(levels: tuple[int, ...], measured_s: float) -> dict[str, Any]:
    users = Users()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="orchestrator-bench-") as folder:
        async with running_system(Path(folder)) as system:
            gateway, nats = system.first.child.pid, system.nats.child.pid
            gateway_kb, nats_kb = resident_kb(gateway), resident_kb(nats)
            connecting_s = 0.0
            for level in levels:
                connecting_s += await users.open(level, system.first.port)
                await asyncio.sleep(SETTLE_S)
                held = len(users.clients)
                figures[f"kb_per_session_at_{level}"] = round((resident_kb(gateway) - gateway_kb) / held, 1)
                begun, cpu_before = perf_counter(), cpu_s(gateway)
                took_ms = await users.active(measured_s)
                figures[f"cpu_percent_at_{level}"] = percent_of_core(
                    cpu_s(gateway) - cpu_before, perf_counter() - begun
                )
                if not took_ms:
                    raise SystemExit(f"no call succeeded: {users.errors[:1]}")
                print(f"{level}: {held} sessions, {len(took_ms)} calls", *users.errors[:5], sep="\n", file=sys.stderr)
                figures[f"calls_at_{level}"] = len(took_ms)
                figures[f"call_p50_ms_at_{level}"] = percentile(took_ms, 50)
                figures[f"call_p99_ms_at_{level}"] = percentile(took_ms, 99)
            figures["kb_per_session"] = round((resident_kb(gateway) - gateway_kb) / held, 1)
            figures["nats_kb_per_session"] = round((resident_kb(nats) - nats_kb) / held, 1)
            figures["connects_per_s"] = round(held / connecting_s)
            figures["idle_cpu_percent"] = await idle_cpu_percent(gateway)
            figures["sessions"] = sum(client.connected for client in users.clients)
            figures["reconnect_all_s"] = round(await users.move(system.first, system.second.port), 2)
            figures["kb_per_session_after"] = round((resident_kb(system.second.child.pid) - gateway_kb) / held, 1)
            for client in users.clients:
                client.disconnect()
    figures["errors"] = len(users.errors)
    figures["lost"] = len(users.faults)
    for said in [*users.errors[:5], *users.faults[:5]]:
        print(said, file=sys.stderr)
    return figures


def main() -> None:
    parser = command.parser("sessions", __doc__)
    parser.add_argument(
        "--levels",
        type=int,
        nargs="+",
        default=list(LEVELS),
        help="numbers of sessions, growing (default: %(default)s)",
    )
    parser.add_argument(
        "--seconds", type=float, default=MEASURED_S, help="of calls at each level (default: %(default)s)"
    )
    options = parser.parse_args()
    if min(options.levels) < 1 or sorted(set(options.levels)) != options.levels:
        parser.error("--levels must be positive and grow")
    if options.seconds <= 0:
        parser.error("--seconds must be above 0")
    allow_files(options.levels[-1])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        figures = runner.run(measure(tuple(options.levels), options.seconds))
    command.print_figures(figures, options)


if __name__ == "__main__":
    main()
