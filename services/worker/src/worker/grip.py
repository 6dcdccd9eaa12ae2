"""A job's hold on a container: let go of exactly once, whatever becomes of the job."""

from __future__ import annotations

from typing import Protocol

from worker.container import ToolContainer
from worker.errors import PoolExhausted, ServerGone
from worker.pool import Acquired


class ContainerSource(Protocol):
    """Where a job's container comes from: a pool, or the lease of its session."""

    async def acquire(self) -> Acquired:
        """
        Raises:
            JobError: if there is none and none can be made.
            PoolExhausted: if all are in use.
        """

    async def release(self, container: ToolContainer) -> None:
        """The call is over."""

    async def end(self, container: ToolContainer) -> None:
        """The call cannot be stopped in any other way. Returns when the container is gone."""

    async def post_mortem(self, container: ToolContainer, gone: ServerGone) -> ServerGone:
        """`gone`, with what the engine knows of the cause."""


class Grip:
    def __init__(self, source: ContainerSource, container: ToolContainer) -> None:
        self._source = source
        self._container: ToolContainer | None = container

    def take(self) -> ToolContainer:
        """The container, counted as given one more call."""
        if self._container is None:
            raise ServerGone("the server ended before the call reached it")
        self._container.calls += 1
        return self._container

    async def exchange(self) -> Acquired:
        """Another container in the place of this one.

        Raises:
            JobError: if no other container is to be had.
        """
        await self.let_go()
        try:
            acquired = await self._source.acquire()
        except PoolExhausted as exc:
            raise ServerGone("the server ended before the call reached it, and no other container is free") from exc
        self._container = acquired.container
        return acquired

    async def let_go(self) -> None:
        if self._container is not None:
            container, self._container = self._container, None
            await self._source.release(container)

    async def end(self) -> None:
        """Returns when the container is gone."""
        if self._container is not None:
            container, self._container = self._container, None
            await self._source.end(container)

    async def post_mortem(self, gone: ServerGone) -> ServerGone:
        if self._container is None:
            return gone
        return await self._source.post_mortem(self._container, gone)
