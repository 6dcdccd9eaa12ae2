"""A job's hold on a container: let go of exactly once, whatever becomes of the job."""

from __future__ import annotations

from typing import Any, Protocol

from common import metrics
from common.catalog import ServerSpec
from common.schema import Job
from worker.container import ToolContainer
from worker.engine import UNPRIVILEGED
from worker.errors import PoolExhausted, ServerGone
from worker.executors.contract import Beginner, Call
from worker.outbox import Outbox
from worker.pool import Acquired


class ContainerServer(Protocol):
    """What a grip needs to know of the server whose containers it holds."""

    spec: ServerSpec
    image_digest: str
    engine_id: str
    """Both empty while no container of the server has worked."""

    def executor_of(self, job: Job) -> Beginner: ...


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


async def take_hold(server: ContainerServer, source: ContainerSource) -> Grip:
    """
    Raises:
        JobError, PoolExhausted: as `ContainerSource.acquire()`.
    """
    return Grip(server, source, await source.acquire())


class Grip:
    """A `Place`."""

    def __init__(self, server: ContainerServer, source: ContainerSource, acquired: Acquired) -> None:
        self._server = server
        self._source = source
        self._acquired = acquired
        self._container: ToolContainer | None = acquired.container

    def described(self) -> dict[str, Any]:
        return {
            "engine": self._server.engine_id,
            "container": self._acquired.container.id[:12],
            "image_digest": self._server.image_digest,
            "warm": self._acquired.warm,
            "state_lost": self._acquired.state_lost,
        }

    def conditions(self) -> dict[str, Any]:
        spec = self._server.spec
        return {
            "image": spec.image,
            "image_digest": self._server.image_digest,
            "runtime": spec.runtime or "default",
            "network": spec.network,
            "user": UNPRIVILEGED,
            "read_only": True,
            "memory_mb": spec.limits.memory_mb,
            "cpus": spec.limits.cpus,
            "pids": spec.limits.pids,
            "scope": spec.scope,
            "warm": self._acquired.warm,
        }

    async def begin(self, job: Job, outbox: Outbox) -> Call:
        if self._container is None:
            raise ServerGone("the server ended before the call reached it")
        self._container.calls += 1
        metrics.CONTAINER_CALLS.labels(job.server, "warm" if self._acquired.warm else "cold").inc()
        return await self._server.executor_of(job).begin(self._container, job, outbox)

    async def exchange(self) -> None:
        await self.let_go()
        try:
            self._acquired = await self._source.acquire()
        except PoolExhausted as exc:
            raise ServerGone("the server ended before the call reached it, and no other container is free") from exc
        self._container = self._acquired.container

    async def let_go(self) -> None:
        if self._container is not None:
            container, self._container = self._container, None
            await self._source.release(container)

    async def end(self) -> None:
        if self._container is not None:
            container, self._container = self._container, None
            await self._source.end(container)

    async def post_mortem(self, gone: ServerGone) -> ServerGone:
        if self._container is None:
            return gone
        return await self._source.post_mortem(self._container, gone)
