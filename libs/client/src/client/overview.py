"""The whole system as its gateways tell it, asked again and again: what `orchestrator top` shows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final

import httpx

from client.endpoint import endpoint, http_address
from client.errors import ClientError, ProtocolFault, Refused, Unreachable
from client.http import http_client

Row = dict[str, Any]

ANSWER_S: Final = 10.0
"""A gateway that has not answered by then is taken for lost; asking goes on."""


@dataclass
class Seen:
    """What is known of one gateway."""

    url: str
    gateway: Row = field(default_factory=dict)
    """What it said of itself last; empty if it never did."""
    fault: ClientError | None = None
    """Why it did not answer the last time."""

    @property
    def state(self) -> str:
        if isinstance(self.fault, Refused) and self.fault.code in (401, 403):
            return "refused"
        if self.fault is not None:
            return "reconnecting"
        if not self.gateway.get("connected"):
            return "no store"
        return "draining" if self.gateway.get("draining") else "serving"

    @property
    def why(self) -> str:
        """The reason of a state that is no good one; else empty."""
        if self.fault is not None:
            return self.fault.message
        return "; ".join([*filter(None, [self.gateway.get("reason")]), *_weaknesses(self.gateway)])


class Overview:
    """What the gateways said last; `look()` asks them. Made by `overview()`."""

    def __init__(self, http: httpx.AsyncClient, urls: Sequence[str]) -> None:
        self._http = http
        self.gateways = [Seen(url) for url in urls]
        self.workers: list[Row] = []
        self.queues: list[Row] = []
        self.jobs_per_s: float | None = None
        """Jobs that ended at workers between the last two looks; None until there were two."""
        self._looked_at: float | None = None

    @property
    def age_s(self) -> float | None:
        """How long ago workers and queues were like that; None if they are not known yet."""
        return None if self._looked_at is None else monotonic() - self._looked_at

    async def look(self) -> None:
        """Ask every gateway. What one that does not answer said before is kept.

        Raises:
            ClientError: if none answers; the first one's reason.
        """
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(self._ask(seen)) for seen in self.gateways]
        answers = [task.result() for task in asked]
        for answer in answers:
            # All of them tell the same of workers and queues, but for one that has lost its store.
            if answer is not None and answer["gateway"].get("connected"):
                self._take(answer)
                break
        if not any(answers):
            fault = self.gateways[0].fault
            assert fault is not None, "it did not answer"
            raise fault

    def as_dict(self) -> Row:
        """For `--json`: as `status/get`, with all gateways."""
        age_s = self.age_s
        return {
            "gateways": [
                {"url": seen.url, "state": seen.state, "why": seen.why} | seen.gateway for seen in self.gateways
            ],
            "workers": self.workers,
            "queues": self.queues,
            "jobs_per_s": self.jobs_per_s,
            "age_s": None if age_s is None else round(age_s, 1),
        }

    async def _ask(self, seen: Seen) -> Row | None:
        try:
            answer = await self._status(seen.url)
        except ClientError as exc:
            seen.fault = exc
            return None
        seen.gateway, seen.fault = answer["gateway"], None
        return answer

    async def _status(self, url: str) -> Row:
        try:
            async with asyncio.timeout(ANSWER_S):
                answer = await self._http.get(f"{url}/v1/status")
        except TimeoutError as exc:
            raise Unreachable(url, f"no answer within {ANSWER_S:g} s") from exc
        except httpx.HTTPError as exc:
            raise Unreachable(url, str(exc) or type(exc).__name__) from exc
        body = _json(answer)
        if answer.status_code != 200:
            raise Refused.from_problem(answer.status_code, body)
        if not isinstance(body, dict) or not isinstance(body.get("gateway"), dict):
            raise ProtocolFault(f"what answers at {url} is no gateway")
        return body

    def _take(self, answer: Row) -> None:
        now = monotonic()
        workers, queues = answer.get("workers") or [], answer.get("queues") or []
        if self._looked_at is not None:
            before = {worker["id"]: worker.get("jobs_ended") or 0 for worker in self.workers}
            # Of one that has come or gone meanwhile it is not known.
            ended = sum(
                max(0, (worker.get("jobs_ended") or 0) - before[worker["id"]])
                for worker in workers
                if worker["id"] in before
            )
            self.jobs_per_s = round(ended / max(now - self._looked_at, 0.001), 1)
        self.workers, self.queues, self._looked_at = workers, queues, now


@asynccontextmanager
async def overview(urls: Sequence[str], key: str) -> AsyncIterator[Overview]:
    """An overview of the system of the gateways at `urls`; nothing is asked yet."""
    doors = [endpoint(url) for url in urls]
    async with http_client(doors, key) as http:
        yield Overview(http, [http_address(door) for door in doors])


def _json(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        return None


def _weaknesses(gateway: Row) -> list[str]:
    return [
        f"the store is weaker than asked for: {each}" for each in gateway.get("durability", {}).get("weaknesses", [])
    ]
