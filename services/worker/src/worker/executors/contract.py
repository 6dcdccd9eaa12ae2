"""What the runner asks of an executor."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from common.schema import Job
from worker.container import ToolContainer
from worker.outbox import Outbox


@dataclass(frozen=True)
class Offer:
    """What a server offers: what the gateways check calls against."""

    era: Literal["legacy", "modern", "none"]
    server_info: dict[str, Any]
    tools: list[dict[str, Any]]


class Call(Protocol):
    """One tool call under way."""

    answer: asyncio.Future[dict[str, Any]]
    """MCP's CallToolResult, or a JobError."""

    async def stop(self) -> bool:
        """Ask for its end, kindly and then less so. Returns when it ended or the grace is over.

        True means that nothing of it runs any more (its answer may have come meanwhile: see `answer`); False
        means that only the end of the container can prove it.
        """


class Beginner(Protocol):
    async def begin(self, container: ToolContainer, job: Job, outbox: Outbox) -> Call:
        """Put the job to the container. Returns when it was handed over.

        Raises:
            ServerGone: if it could not be handed over; nothing of it ran then.
        """


class Executor(Beginner, Protocol):
    async def prepare(self, container: ToolContainer) -> None:
        """Make a started container ready for calls. The caller sets the deadline.

        Raises:
            HandshakeFailed, ServerGone
        """

    async def offer(self, container: ToolContainer) -> Offer:
        """Ask a ready container what it offers."""

    async def probe(self, container: ToolContainer) -> None:
        """Is an idle container well? The caller sets the deadline.

        Raises:
            JobError: if not.
        """
