"""Striking: the faults of a schedule, each at its time, each healed again, each written down."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import suppress
from itertools import groupby

import aiodocker
import aiohttp

from standalone.errors import NotReady
from tests.chaos.load import Load
from tests.chaos.proxy import Proxy
from tests.chaos.schedule import Action, Fault, Kind, Target, lane
from tests.chaos.system import Service, System
from tests.chaos.verdict import Strike
from tests.restartable import Restartable

READY_AGAIN_S = 20.0
"""How long a service that was started anew is waited for before the next fault of its kind may come: it may be
another fault that holds it up."""
SHORTEST_DELAY_S, LONGEST_DELAY_S = 0.05, 0.5


class Faults:
    """`run()` strikes; `strikes` is what was done."""

    def __init__(self, system: System, load: Load, schedule: list[Fault]) -> None:
        self.strikes: list[Strike] = []
        self.skipped: list[str] = []
        """Faults that found nothing to strike."""
        self._system = system
        self._load = load
        self._schedule = schedule

    @property
    def kills(self) -> int:
        """SIGKILLs."""
        return sum(1 for strike in self.strikes if strike.kind.action is Action.KILL)

    async def run(self, begun: float) -> None:
        """Returns when every fault has struck and was healed. `begun` is the schedule's zero on the monotonic clock."""
        by_lane = sorted(self._schedule, key=lambda fault: (lane(fault.kind.target), fault.at_s))
        async with asyncio.TaskGroup() as lanes:
            for _, faults in groupby(by_lane, key=lambda fault: lane(fault.kind.target)):
                lanes.create_task(self._run_lane(list(faults), begun))

    async def _run_lane(self, faults: list[Fault], begun: float) -> None:
        for fault in faults:
            await asyncio.sleep(max(0.0, begun + fault.at_s - time.monotonic()))
            await self._strike(fault)

    def _begin(self, kind: Kind, name: str, *, worker: str = "", container: str = "") -> Strike:
        strike = Strike(kind, name, _now_ms(), worker=worker, container=container)
        self.strikes.append(strike)
        return strike

    async def _strike(self, fault: Fault) -> None:
        kind, system = fault.kind, self._system
        match kind.target:
            case Target.WORKER:
                await self._strike_service(fault, system.workers[fault.index % len(system.workers)])
            case Target.GATEWAY:
                await self._strike_service(fault, system.gateways[fault.index % len(system.gateways)])
            case Target.NATS:
                await self._strike_nats(fault)
            case Target.DOCKERD:
                await self._strike_process(fault, system.docker)
            case Target.TOOL:
                await self._kill_tool(fault)
            case Target.CLIENT_LINK:
                gateway = system.gateways[fault.index % len(system.gateways)]
                await self._strike_link(fault, gateway.name, [gateway.client_link])
            case Target.GATEWAY_LINK:
                gateway = system.gateways[fault.index % len(system.gateways)]
                await self._strike_link(fault, gateway.name, gateway.links)
            case Target.WORKER_LINK:
                worker = system.workers[fault.index % len(system.workers)]
                await self._strike_link(fault, worker.name, worker.links, worker.worker_id)
            case Target.CLIENT:
                await self._strike_client(fault)

    # --- signals --------------------------------------------------------------------------------------

    async def _strike_process(self, fault: Fault, process: Restartable, worker: str = "") -> Strike | None:
        """Kill and start, or freeze and thaw. None if it was not running."""
        if not process.running:
            self.skipped.append(f"{fault.kind}: {process.name} was not running")
            return None
        strike = self._begin(fault.kind, process.name, worker=worker)
        if fault.kind.action is Action.KILL:
            await process.kill()
            await asyncio.sleep(fault.lasts_s)
            await process.start()
        else:
            process.freeze()
            await asyncio.sleep(fault.lasts_s)
            process.thaw()
        strike.end_ms = _now_ms()
        return strike

    async def _strike_service(self, fault: Fault, service: Service) -> None:
        worker = service.worker_id if fault.kind.target is Target.WORKER and service.running else ""
        strike = await self._strike_process(fault, service, worker)
        with suppress(NotReady):
            await service.wait_until_ready(READY_AGAIN_S)
        if strike is not None:
            strike.end_ms = _now_ms()

    async def _strike_nats(self, fault: Fault) -> None:
        """One node at a time: the next fault waits until all three have everything again."""
        nats = self._system.nats
        strike = await self._strike_process(fault, nats.nodes[fault.index % len(nats.nodes)])
        await nats.wait_until_healthy()
        if strike is not None:
            strike.end_ms = _now_ms()

    async def _kill_tool(self, fault: Fault) -> None:
        try:
            pids = await self._system.docker.server_pids()
        except (aiodocker.DockerError, aiohttp.ClientError, TimeoutError, OSError) as exc:
            self.skipped.append(f"{fault.kind}: the engine does not answer ({type(exc).__name__})")
            return
        if not pids:
            self.skipped.append(f"{fault.kind}: no container was running")
            return
        container = sorted(pids)[fault.index % len(pids)]
        with suppress(ProcessLookupError):
            os.kill(pids[container], signal.SIGKILL)
            strike = self._begin(fault.kind, container[:12], container=container[:12])
            strike.end_ms = strike.begin_ms

    # --- connections and clients ----------------------------------------------------------------------

    async def _strike_link(self, fault: Fault, name: str, links: list[Proxy], worker: str = "") -> None:
        strike = self._begin(fault.kind, name, worker=worker)
        for link in links:
            match fault.kind.action:
                case Action.DROP:
                    link.drop()
                case Action.DELAY:
                    part = fault.index % 1000 / 1000
                    link.delay(SHORTEST_DELAY_S + part * (LONGEST_DELAY_S - SHORTEST_DELAY_S))
                case Action.HALF_CLOSE:
                    link.half_close()
                case Action.STALL:
                    link.stall()
        await asyncio.sleep(fault.lasts_s)
        for link in links:
            link.heal()
        strike.end_ms = _now_ms()

    async def _strike_client(self, fault: Fault) -> None:
        client = self._load.clients[fault.index % len(self._load.clients)]
        strike = self._begin(fault.kind, client.name)
        if fault.kind.action is Action.VANISH:
            client.vanish(fault.lasts_s)
        else:
            client.slow_down(fault.lasts_s)
        await asyncio.sleep(fault.lasts_s)
        strike.end_ms = _now_ms()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
