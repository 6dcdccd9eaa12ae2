"""The load: clients that submit jobs of every kind for the whole run, cancel some, change sessions, and follow all."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.chaos.client import Client, Lost, Refused, Seen

KEY = "development"
CLIENTS = 8
PATIENCE_S = (3.0, 20.0)
"""How long a gateway may be silent before a client goes elsewhere, for every other client: some sit a freeze out."""
THINK_S = 0.42
"""Mean time between two jobs of a client: so that two cores are busy and not drowned."""
IN_FLIGHT = 6
"""Jobs of a client that have not ended; beyond it the client waits."""
GIVEN_UP_AFTER_S = 60.0
"""How long a job counts as in flight: one that was lost must not hold its client up."""
JOBS_OF_A_SESSION = (40, 120)
RETRY_S = 0.3
RESUBMIT_FOR_S = 60.0

SERVERS = {"shared": 62, "session": 30, "call": 8}
TOOLS = {"look": 40, "put": 25, "pay": 35}
CANCELLED, STUBBORN, WITH_PROGRESS, LONG, CLOSED = 0.08, 0.05, 0.25, 0.06, 0.5
"""Parts: of the jobs that are cancelled, go on when they are cancelled, report progress, take long; of the sessions
that are closed at once rather than left when their jobs have ended."""

EXPLAINED = frozenset({"store_unavailable", "server_not_ready", "queue_full", "too_many_jobs", "rate_limited"})
"""Refusals that faults explain, and that end by themselves; any other is a violation."""


@dataclass
class Submission:
    """One job as its client asked for it."""

    key: str
    session: str
    server: str
    tool: str
    asked_ms: int
    job: str = ""
    """Empty until it was accepted: until an answer with its id came."""
    accepted_ms: int = 0
    cancel_asked_ms: int = 0
    given_up: bool = False
    """No answer came, and none is waited for any more."""


class Load:
    """`run()` keeps it up until `stop()`; what happened is in `submissions`, and in the clients' `seen`."""

    def __init__(self, urls: list[str], seed: int, tasks: asyncio.TaskGroup) -> None:
        self.submissions: list[Submission] = []
        self.refusals: Counter[str] = Counter()
        self.faults: list[str] = []
        """Answers that nothing explains."""
        self.clients = [
            Client(f"client-{n}", urls, KEY, random.Random(f"{seed}/connections/{n}"), PATIENCE_S[n % len(PATIENCE_S)])
            for n in range(CLIENTS)
        ]
        self._seed = seed
        self._tasks = tasks
        self._stopping = asyncio.Event()

    @property
    def accepted(self) -> int:
        return sum(1 for submission in self.submissions if submission.job)

    @property
    def ended(self) -> int:
        return sum(len(seen.ended) for client in self.clients for seen in client.seen)

    def stop(self) -> None:
        """Submit nothing more."""
        self._stopping.set()

    async def run(self) -> None:
        """Returns after `stop()`, when every answer that was asked for has come or is given up."""
        connections = [self._tasks.create_task(client.run()) for client in self.clients]
        self._connections = connections
        async with asyncio.TaskGroup() as lives:
            for number, client in enumerate(self.clients):
                lives.create_task(self._live(client, random.Random(f"{self._seed}/jobs/{number}")))

    def disconnect(self) -> None:
        for connection in self._connections:
            connection.cancel()

    # --- a client's life ------------------------------------------------------------------------------

    async def _live(self, client: Client, rng: random.Random) -> None:
        """Sessions one after the other."""
        numbers = itertools.count(1)
        while not self._stopping.is_set():
            seen = await self._opened(client)
            if seen is not None:
                await self._work(client, seen, rng, numbers)

    async def _work(self, client: Client, seen: Seen, rng: random.Random, numbers: Iterator[int]) -> None:
        """The jobs of one session, and its end: unless the load stops, then the client goes on following it."""
        mine: list[Submission] = []
        async with asyncio.TaskGroup() as jobs:
            for _ in range(rng.randrange(*JOBS_OF_A_SESSION)):
                await self._pause(rng.expovariate(1 / THINK_S))
                await self._wait(client, lambda: len(_in_flight(mine, seen)) < IN_FLIGHT, GIVEN_UP_AFTER_S)
                if self._stopping.is_set():
                    return
                arguments, server, tool, cancel_after_s = self._job(rng, f"{client.name}.{next(numbers)}")
                submission = Submission(arguments["key"], seen.session, server, tool, _now_ms())
                mine.append(submission)
                self.submissions.append(submission)
                jobs.create_task(self._submit(client, seen, submission, arguments, cancel_after_s))
            if rng.random() < CLOSED:
                seen.closing = True
                await self._persist(client, seen, "session/close", {"session": seen.session})
        if not seen.closing:
            await self._wait(client, lambda: not _in_flight(mine, seen), GIVEN_UP_AFTER_S)
        if not self._stopping.is_set() or seen.closing:
            seen.left = True

    def _job(self, rng: random.Random, key: str) -> tuple[dict[str, Any], str, str, float | None]:
        """Arguments, server, tool, and when to cancel. Always as many random numbers, so that a seed replays."""
        server, tool = _drawn(rng, SERVERS), _drawn(rng, TOOLS)
        short, long, steps = rng.randrange(0, 300), rng.randrange(800, 3000), rng.randrange(1, 5)
        chances = [rng.random() for _ in range(4)]
        cancel_after_s = rng.random() * 1.5
        arguments: dict[str, Any] = {
            "key": key,
            "ms": long if chances[0] < LONG else short,
            "steps": steps if chances[1] < WITH_PROGRESS else 0,
            "stubborn": chances[2] < STUBBORN,
        }
        return arguments, server, tool, cancel_after_s if chances[3] < CANCELLED else None

    async def _opened(self, client: Client) -> Seen | None:
        """A new session; None if the load stops first."""
        while not self._stopping.is_set():
            try:
                return await client.open_session()
            except Lost:
                pass
            except Refused as refused:
                self._note(refused)
            await self._pause(RETRY_S)
        return None

    # --- a job ----------------------------------------------------------------------------------------

    async def _submit(
        self,
        client: Client,
        seen: Seen,
        submission: Submission,
        arguments: dict[str, Any],
        cancel_after_s: float | None,
    ) -> None:
        params = {
            "session": submission.session,
            "server": submission.server,
            "name": submission.tool,
            "arguments": arguments,
        }
        accepted = await self._persist(client, seen, "tools/call", {**params, "idempotencyKey": submission.key})
        if accepted is None:
            submission.given_up = True
            return
        submission.job = accepted["job"]
        submission.accepted_ms = _now_ms()
        if cancel_after_s is not None:
            await self._pause(cancel_after_s)
            submission.cancel_asked_ms = _now_ms()
            ids = {"session": submission.session, "job": submission.job}
            await self._persist(client, seen, "job/cancel", ids)

    async def _persist(self, client: Client, seen: Seen, method: str, params: dict[str, Any]) -> dict[str, Any] | None:
        """Ask until there is an answer: a method that may be asked twice. None if there was none for a long time."""
        begun = time.monotonic()
        while time.monotonic() - begun < RESUBMIT_FOR_S:
            pause_s = RETRY_S
            try:
                return await client.request(method, params)
            except Lost:
                self.refusals["answer lost"] += 1
            except Refused as refused:
                self._note(refused, seen)
                if refused.type not in EXPLAINED:
                    return None
                pause_s = max(RETRY_S, refused.retry_after_s)
            await asyncio.sleep(pause_s)
        self.refusals[f"{method} given up"] += 1
        return None

    def _note(self, refused: Refused, seen: Seen | None = None) -> None:
        self.refusals[refused.type] += 1
        closed = refused.type == "unknown_session" and seen is not None and seen.closing
        if refused.type not in EXPLAINED and not closed:
            self.faults.append(f"refused as {refused.type} at {_now_ms()}: {refused}")

    # --- waiting --------------------------------------------------------------------------------------

    async def _pause(self, seconds: float) -> None:
        """Sleep, but not beyond `stop()`."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return

    async def _wait(self, client: Client, reached: Callable[[], bool], timeout_s: float) -> None:
        """Returns when `reached()`, which events of the client decide, or after the time, or after `stop()`."""
        deadline = time.monotonic() + timeout_s
        while not reached() and not self._stopping.is_set() and time.monotonic() < deadline:
            try:
                async with asyncio.timeout(1), client.moved:
                    await client.moved.wait()
            except TimeoutError:
                continue


def _in_flight(submissions: list[Submission], seen: Seen) -> list[Submission]:
    """Those that may still end, and are not so old that they are given up."""
    oldest_ms = _now_ms() - GIVEN_UP_AFTER_S * 1000
    return [
        each for each in submissions if each.job not in seen.ended and not each.given_up and each.asked_ms > oldest_ms
    ]


def _drawn(rng: random.Random, weights: dict[str, int]) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
