"""Where an attempt of a job runs: a container, or this process itself where the job is a chat turn."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from common.schema import Event, Job
from worker.errors import ServerGone
from worker.executors.contract import Call
from worker.outbox import Outbox


class Place(Protocol):
    """Taken for one attempt, and left exactly once, whatever becomes of the job."""

    def described(self) -> dict[str, Any]:
        """What the attempt's `started` event says of it."""

    def conditions(self) -> dict[str, Any]:
        """What the job ran under, so that a caller can hold us to it."""

    async def begin(self, job: Job, outbox: Outbox) -> Call:
        """Put the job to it. Returns when it was handed over.

        Raises:
            ServerGone: if it could not be handed over; nothing of it ran then.
        """

    async def exchange(self) -> None:
        """Another place instead of this one, which was lost before the job reached it.

        Raises:
            JobError: if there is none.
        """

    async def end(self) -> None:
        """The call cannot be stopped in any other way. Returns when nothing of it runs any more."""

    async def post_mortem(self, gone: ServerGone) -> ServerGone:
        """`gone`, with what else is known of the cause."""

    async def let_go(self) -> None:
        """The attempt is over. May be called again."""


TakePlace = Callable[[], Awaitable[Place]]
"""
Raises:
    JobError: if there is none and none can be made.
    PoolExhausted: if all are in use.
"""


class JobRules(Protocol):
    """What decides on the attempts of a server's jobs."""

    def repeatable(self, job: Job) -> bool:
        """May another attempt follow one that began and was lost?"""

    def read_only(self, job: Job) -> bool:
        """Has it no effect?"""

    async def stopped(self, job: Job, started: Event) -> bool:
        """Does nothing run any more of an attempt whose worker is lost? What still does is ended, if it can be.

        Raises:
            OwnerAlive: if its worker answers.
            EngineUnavailable, StoreUnavailable: if that cannot be told now.
        """
