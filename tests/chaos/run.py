"""One fault run from its first process to its verdict."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from common.bus import Bus
from common.errors import StoreUnavailable
from tests.chaos import ledger
from tests.chaos.faults import Faults
from tests.chaos.load import Load, Submission
from tests.chaos.schedule import Fault
from tests.chaos.system import ACK_WAIT_S, LEASE_TTL_S, SERVERS, Durability, System, run_system
from tests.chaos.verdict import Evidence, Row, Verdict, judge

REPORT_PERIOD_S = 5.0
HEAL_TIMEOUT_S = 60.0
SETTLE_TIMEOUT_S = 120.0
"""From the last submission to the end of the last job."""
CATCH_UP_TIMEOUT_S = 30.0
POLL_S = 0.2
LEASE_SLACK_S = 1.0


class Run:
    """`execute()` once."""

    def __init__(
        self,
        seconds: float,
        seed: int,
        schedule: list[Fault],
        *,
        durability: Durability,
        folder: Path,
        docker_host: str,
    ) -> None:
        self._seconds = seconds
        self._seed = seed
        self._schedule = schedule
        self._durability = durability
        self._folder = folder
        self._docker_host = docker_host
        self._other_faults: list[str] = []
        self._begun = 0.0

    async def execute(self) -> Verdict:
        """Returns when nothing of the run is left.

        Raises:
            NotReady, TimeoutError: if the system does not come up.
        """
        self._say("starting the system")
        async with run_system(self._folder, self._docker_host, durability=self._durability) as system:
            load, faults = await self._strain(system)
            self._say("counting")
            stored = await self._stored(system.bus, load)
            self._say("stopping the services")
            self._other_faults += await system.terminate()
            containers = list((await system.docker.containers()).values())
            processes = system.processes()
            await asyncio.sleep(LEASE_TTL_S + LEASE_SLACK_S)
            leases = await system.leases()
            executions = ledger.count(system.ledger.executions())
        processes += [f"{pid} {line}" for pid, line in system.docker.processes().items()]
        self._other_faults += [*system.crashes, *load.faults]
        self._other_faults += [fault for client in load.clients for fault in client.faults]
        self._write("faults.log", [*faults.strikes, *faults.skipped])
        self._write("events.log", [(session, *row) for session, rows in stored.items() for row in rows])
        self._write("submissions.log", load.submissions)
        verdict = judge(
            Evidence(
                submissions=load.submissions,
                stored=stored,
                seen=[seen for client in load.clients for seen in client.seen],
                executions=executions,
                strikes=faults.strikes,
                ack_wait_s=ACK_WAIT_S,
                containers_left=containers,
                processes_left=processes,
                leases_left=leases,
                other_faults=self._other_faults,
            )
        )
        self._tell(load, faults, verdict)
        return verdict

    async def _strain(self, system: System) -> tuple[Load, Faults]:
        """Load and faults for the time of the run, then peace until every job has ended and was seen."""
        async with asyncio.TaskGroup() as tasks:
            load = Load([gateway.url for gateway in system.gateways], self._seed, tasks)
            faults = Faults(system, load, self._schedule)
            watching = tasks.create_task(system.watch())
            self._begun = time.monotonic()
            loading = tasks.create_task(load.run())
            reporting = tasks.create_task(self._report(load, faults))
            await faults.run(self._begun)
            await asyncio.sleep(max(0.0, self._begun + self._seconds - time.monotonic()))
            self._say("the faults are over")
            try:
                await system.heal(HEAL_TIMEOUT_S)
            except Exception as exc:  # noqa: BLE001 - a verdict on what there is tells more than its absence
                self._other_faults.append(f"not healed: {exc}")
            for client in load.clients:
                client.speed_up()
            load.stop()
            await loading
            self._say(f"{load.accepted} jobs were accepted; waiting for their ends")
            await self._settle(system.bus, load)
            await self._catch_up(system.bus, load)
            reporting.cancel()
            watching.cancel()
            load.disconnect()
        return load, faults

    # --- the end --------------------------------------------------------------------------------------

    async def _settle(self, bus: Bus, load: Load) -> None:
        """Returns when the queues are empty and every accepted job has ended, or after SETTLE_TIMEOUT_S."""
        open_jobs = [each for each in load.submissions if each.job]
        queues: dict[str, tuple[int, int]] = {}
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                queues = {server: await bus.queue_depth(server) for server in SERVERS}
                open_jobs = [each for each in open_jobs if not await _ended(bus, each)]
            except StoreUnavailable as exc:
                self._say(f"the store is not there: {exc.message}")
            if not open_jobs and not any(map(any, queues.values())):
                return
            await asyncio.sleep(POLL_S)
        self._other_faults.append(
            f"not settled: queues (waiting, running) {queues}, {len(open_jobs)} jobs have not ended"
        )

    async def _catch_up(self, bus: Bus, load: Load) -> None:
        """Returns when each client has the last event of its session, or after CATCH_UP_TIMEOUT_S."""
        deadline = time.monotonic() + CATCH_UP_TIMEOUT_S
        for client in load.clients:
            if (seen := client.current) is None:
                continue
            rows = await _rows(bus, seen.session)
            while rows and seen.seq < rows[-1].seq and time.monotonic() < deadline:
                await asyncio.sleep(POLL_S)

    async def _stored(self, bus: Bus, load: Load) -> dict[str, list[Row]]:
        """Every event of every session."""
        sessions = [seen.session for client in load.clients for seen in client.seen]
        return {session: await _rows(bus, session) for session in sessions}

    # --- what a person reads --------------------------------------------------------------------------

    async def _report(self, load: Load, faults: Faults) -> None:
        while True:
            await asyncio.sleep(REPORT_PERIOD_S)
            last = f", last {faults.strikes[-1].kind} {faults.strikes[-1].name}" if faults.strikes else ""
            self._say(
                f"{load.accepted} jobs accepted, {load.ended} ended; "
                f"{len(faults.strikes)} faults, {faults.kills} kills{last}"
            )

    def _tell(self, load: Load, faults: Faults, verdict: Verdict) -> None:
        kinds = Counter(str(strike.kind) for strike in faults.strikes)
        connections = sum(client.connections for client in load.clients)
        sessions = sum(len(client.seen) for client in load.clients)
        self._say(f"faults: {dict(sorted(kinds.items()))}")
        for skipped in faults.skipped:
            self._say(f"skipped: {skipped}")
        self._say(
            f"clients: {sessions} sessions, {connections} connections, refused or unanswered {dict(load.refusals)}"
        )
        self._say(f"outcomes: {dict(verdict.outcomes)}; unknown ones explained by {dict(verdict.explained_by)}")
        self._say(f"recovered after the kill of a worker, less ack_wait: {len(verdict.recovered_s)} jobs")

    def _write(self, name: str, lines: Iterable[object]) -> None:
        """Beside the logs, for whoever looks for the cause of a violation."""
        (self._folder / name).write_text("".join(f"{line}\n" for line in lines))

    def _say(self, what: str) -> None:
        at = f"{time.monotonic() - self._begun:6.1f} s" if self._begun else "   start"
        print(f"chaos: {at}  {what}", file=sys.stderr, flush=True)


async def _ended(bus: Bus, submission: Submission) -> bool:
    last = await bus.last_event(submission.session, submission.job)
    return last is not None and last.event.terminal


async def _rows(bus: Bus, session: str) -> list[Row]:
    rows = []
    async for seq, event in bus.replay_session(session, 0):
        told = {name: event.data.get(name, "") for name in ("outcome", "worker", "container")}
        rows.append(Row(seq, event.job, event.attempt, event.type, event.time_ms, **told))
    return rows
