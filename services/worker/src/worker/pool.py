"""The containers of one server on this worker: warm ones kept ready, every one accounted for until it is gone.

Scope decides what a container may serve. `shared`: many calls at once, of any session. `session` and `call`:
one holder, once; it never goes back to the warm ones (docs/adr/0005).
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from time import monotonic
from typing import Any

from common import metrics
from common.catalog import ServerSpec
from common.job_errors import JobError
from common.log import get
from worker.boot_gate import BootGate, Wanted
from worker.container import ToolContainer
from worker.engine import ContainerEngine, ContainerSpec
from worker.errors import ContainerStartFailed, EngineUnavailable, HandshakeFailed, PoolExhausted, ServerGone
from worker.executors.contract import Executor
from worker.mcp_connection import McpConnection

_log = get(__name__)

KEEP_PERIOD_S = 15.0
"""Between two looks at idle containers."""
PROBE_TIMEOUT_S = 5.0
MAX_AGE_S = 3600.0
MAX_CALLS = 10_000
AGE_JITTER = 0.2
BACKOFF_MIN_S = 0.5
BACKOFF_MAX_S = 30.0
ENGINE_BACKOFF_S = 1.0
"""An engine that is away is asked again soon: the question costs nothing, and every call waits for the answer."""
FAILURES_UNTIL_REFUSAL = 3
"""After so many failed boots in a row, calls are told the last failure at once while the back-off runs."""
_NO_SUCH_COMMAND = 127
"""What the init process exits with when the container's command does not exist."""


@dataclass(frozen=True)
class Acquired:
    container: ToolContainer
    warm: bool
    """It was ready when it was asked for."""
    state_lost: bool = False
    """The session had a container before this one, and what it kept is gone."""


class Pool:
    """Made for one catalog entry. `keep()` must run: it refills, probes and recycles."""

    def __init__(
        self,
        server: str,
        spec: ServerSpec,
        container_spec: ContainerSpec,
        executor: Executor,
        engine: ContainerEngine,
        tasks: asyncio.TaskGroup,
        boot_gate: BootGate,
    ) -> None:
        self._server = server
        self._spec = spec
        self._container_spec = container_spec
        self._executor = executor
        self._engine = engine
        self._tasks = tasks
        self._boot_gate = boot_gate
        self._shared = spec.scope == "shared"
        self._members: set[ToolContainer] = set()
        self._ready: list[ToolContainer] = []
        """Not retired; shared ones stay here while they serve."""
        self._starting = 0
        self._waiting = 0
        self._changed = asyncio.Condition()
        self._wake = asyncio.Event()
        self._closing = False
        self._booted = 0
        self._failures = 0
        self._retry_at = 0.0
        self._last_failure: JobError | None = None
        self._gauges = {state: metrics.CONTAINERS.labels(server, state) for state in ("ready", "busy", "starting")}
        metrics.create_pool_labels(server, spec.pool.max)
        self._max_age_s = MAX_AGE_S * (1 + AGE_JITTER * random.random())

    # --- what the worker shows -------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        busy = sum(1 for container in self._members if container.busy)
        return {
            "server": self._server,
            "scope": self._spec.scope,
            "ready": len(self._members) - busy,
            "busy": busy,
            "starting": self._starting,
            "limit": self._spec.pool.max,
            "failure": self._last_failure.message if self._last_failure else "",
        }

    @property
    def containers(self) -> list[str]:
        """Ids of all that are not gone."""
        return [container.id for container in self._members]

    @property
    def warmed_up(self) -> bool:
        """True once the pool has booted what it should hold, or knows that it cannot.

        What calls have taken since counts too: a pool under load may never see a container wait.
        """
        return self._booted >= self._spec.pool.min or self._last_failure is not None

    # --- taking and giving back ------------------------------------------------------------------------

    async def acquire(self, timeout_s: float) -> Acquired:
        """A usable container, warm if there is one, booted if there is room, else the first that comes free.

        Raises:
            PoolExhausted: if none came free within `timeout_s`. Booting has its own deadline.
            ContainerStartFailed, HandshakeFailed, EngineUnavailable: if one had to be booted and could not.
        """
        give_up_at = monotonic() + timeout_s
        failures = self._failures
        warm = True
        while True:
            container = self._take_ready()
            if container is not None:
                self._wake.set()
                return Acquired(container, warm)
            warm = False
            if self._last_failure is not None and self._failures > failures:
                raise self._last_failure  # the boot that was waited for has failed
            if self._may_boot():
                container = await self._boot(lambda: True)
                self._hold(container)
                self._wake.set()
                return Acquired(container, warm)
            await self._wait_for_change(give_up_at - monotonic())

    async def _wait_for_change(self, timeout_s: float) -> None:
        self._waiting += 1
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait()
        except TimeoutError as exc:
            raise PoolExhausted(f"all {self._spec.pool.max} containers of {self._server} are in use") from exc
        finally:
            self._waiting -= 1

    def _take_ready(self) -> ToolContainer | None:
        usable = [container for container in self._ready if container.usable]
        if self._shared:
            usable = [container for container in usable if container.busy < self._spec.concurrency.per_container]
        if not usable:
            return None
        container = min(usable, key=lambda candidate: candidate.busy)
        self._hold(container)
        return container

    def _hold(self, container: ToolContainer) -> None:
        container.busy += 1
        if self._shared:
            if container not in self._ready:
                self._ready.append(container)
        elif container in self._ready:
            self._ready.remove(container)

    def _may_boot(self) -> bool:
        """Is there room, and a need that the containers now starting do not cover?"""
        if len(self._members) + self._starting >= self._spec.pool.max:
            return False
        if self._last_failure is not None and self._failures >= FAILURES_UNTIL_REFUSAL and monotonic() < self._retry_at:
            raise self._last_failure
        per_container = self._spec.concurrency.per_container if self._shared else 1
        return self._starting * per_container <= self._waiting

    async def release(self, container: ToolContainer) -> None:
        """Its holder is done. Used-up containers are removed in the background."""
        container.busy -= 1
        if not self._shared or container.calls >= MAX_CALLS or container.connection.ended:
            container.retired = True
        if container.retired and container.busy == 0:
            self._remove_soon(container)
        await self._notify()

    async def put_back(self, container: ToolContainer) -> None:
        """Return a container that was given no call: it is as good as new."""
        if self._shared or not container.usable:
            await self.release(container)
        else:
            container.busy -= 1
            self._ready.append(container)
            await self._notify()

    async def end(self, container: ToolContainer) -> None:
        """Release it, and return when it is gone for sure. A shared one goes when its other calls have ended."""
        container.retired = True
        await self.release(container)
        await container.gone.wait()

    # --- keeping ---------------------------------------------------------------------------------------

    async def keep(self) -> None:
        """Hold the minimum ready, ahead of demand; look after idle ones. Runs until cancelled."""
        while True:
            self._wake.clear()
            await self._refill()
            try:
                async with asyncio.timeout(self._next_look_s()):
                    await self._wake.wait()
            except TimeoutError:
                await self._look_after_idle()

    def _next_look_s(self) -> float:
        if self._last_failure is not None:
            return max(0.05, self._retry_at - monotonic())
        return KEEP_PERIOD_S

    async def _refill(self) -> None:
        if self._closing or monotonic() < self._retry_at:
            return
        idle = [container for container in self._ready if container.usable]
        room = self._spec.pool.max - len(self._members) - self._starting
        for _ in range(min(room, self._spec.pool.min - len(idle) - self._starting)):
            self._tasks.create_task(self._boot_spare())

    async def _boot_spare(self) -> None:
        try:
            container = await self._boot(lambda: self._waiting > 0)
        except JobError:
            self._wake.set()  # keep() works out when to try again
            return
        self._ready.append(container)
        await self._notify()

    async def _look_after_idle(self) -> None:
        for container in [candidate for candidate in self._ready if not candidate.busy]:
            if monotonic() - container.booted_at > self._max_age_s:
                self._retire(container)
                continue
            try:
                async with asyncio.timeout(PROBE_TIMEOUT_S):
                    await self._executor.probe(container)
            except (JobError, TimeoutError) as exc:
                _log.warning(
                    "idle container is not well", server=self._server, container=container.id[:12], why=str(exc)
                )
                self._retire(container)

    def _withdraw(self, container: ToolContainer) -> None:
        """It takes no new call."""
        container.retired = True
        if container in self._ready:
            self._ready.remove(container)

    def _retire(self, container: ToolContainer) -> None:
        self._withdraw(container)
        if container.busy == 0:
            self._remove_soon(container)
        self._wake.set()

    # --- boot and end ----------------------------------------------------------------------------------

    async def _boot(self, wanted: Wanted) -> ToolContainer:
        """Create, attach, start, agree on the protocol: one deadline over all, nothing left behind on failure."""
        self._starting += 1
        begun = monotonic()
        try:
            async with self._boot_gate.place(wanted):
                container = await self._boot_within_deadline()
        except JobError as exc:
            self._failures += 1
            longest_s = ENGINE_BACKOFF_S if isinstance(exc, EngineUnavailable) else BACKOFF_MAX_S
            backoff_s = min(longest_s, BACKOFF_MIN_S * 2**self._failures)
            self._retry_at = monotonic() + backoff_s * (0.5 + random.random() / 2)
            self._last_failure = exc
            metrics.CONTAINER_BOOTS.labels(self._server, "failed").inc()
            if not self._closing:
                _log.warning("container did not start", server=self._server, error=exc.type, why=exc.message)
            raise
        finally:
            self._starting -= 1
            await self._notify()
        self._booted += 1
        self._failures, self._retry_at, self._last_failure = 0, 0.0, None
        metrics.CONTAINER_BOOTS.labels(self._server, "ready").inc()
        metrics.CONTAINER_BOOT_SECONDS.labels(self._server).observe(monotonic() - begun)
        return container

    async def _boot_within_deadline(self) -> ToolContainer:
        deadline_s = self._spec.timeouts.start_s
        container: ToolContainer | None = None
        container_id: str | None = None
        try:
            async with asyncio.timeout(deadline_s):
                container_id = await self._engine.create(self._container_spec)
                if self._closing:
                    raise ContainerStartFailed("the pool is closing")
                duplex = await self._engine.attach(container_id)  # before start, or early output is lost
                container = ToolContainer(container_id, duplex, McpConnection(duplex))
                self._members.add(container)
                if self._closing:
                    raise ContainerStartFailed("the pool is closing")
                await self._engine.start(container_id)
                container.reading = self._tasks.create_task(self._follow(container))
                await self._executor.prepare(container)
            return container
        except TimeoutError as exc:
            said = f"the server did not answer its MCP handshake within {deadline_s:g} s"
            if container is not None:
                said = container.connection.describe_failure(said)
            self._clear_away(container_id, container)
            raise HandshakeFailed(said) from exc
        except HandshakeFailed as exc:
            try:
                failure = await self._explain(container, exc)
            finally:
                self._clear_away(container_id, container)
            raise failure from exc
        except BaseException:
            self._clear_away(container_id, container)
            raise

    async def _explain(self, container: ToolContainer | None, exc: HandshakeFailed) -> JobError:
        """A server that ended instead of answering: its exit code says more than the silence."""
        if container is None or not container.connection.ended:
            return exc
        state = await self._engine.inspect(container.id)
        if state is None or state.running:
            return exc
        if state.exit_code == _NO_SUCH_COMMAND:
            return ContainerStartFailed(container.connection.describe_failure("the container's command does not exist"))
        said = f"the server ended with exit code {state.exit_code} instead of answering its MCP handshake"
        return HandshakeFailed(container.connection.describe_failure(said), exit_code=state.exit_code)

    def _clear_away(self, container_id: str | None, container: ToolContainer | None) -> None:
        """In the background, because an engine that has just failed may need a while to remove it."""
        if container is not None:
            self._remove_soon(container)
        elif container_id is not None:
            self._tasks.create_task(self._remove_until_gone(container_id))

    async def _follow(self, container: ToolContainer) -> None:
        """Read what the server writes; when it ends unasked, replace it."""
        await container.connection.read()
        if container.retired:
            return
        _log.info("server ended", server=self._server, container=container.id[:12], busy=container.busy)
        self._retire(container)
        await self._notify()

    def _remove_soon(self, container: ToolContainer) -> None:
        self._withdraw(container)
        self._tasks.create_task(self._remove(container))

    async def _remove(self, container: ToolContainer) -> None:
        await self._remove_until_gone(container.id)
        await container.duplex.close()
        if container.reading is not None:
            container.reading.cancel()  # a stream closed from our side does not always wake its reader
        self._members.discard(container)
        container.gone.set()
        self._wake.set()
        await self._notify()

    async def _remove_until_gone(self, container_id: str) -> None:
        wait_s = BACKOFF_MIN_S
        while True:
            try:
                return await self._engine.remove(container_id)
            except (EngineUnavailable, TimeoutError) as exc:
                _log.warning("container not removed yet", container=container_id[:12], why=str(exc))
            await asyncio.sleep(wait_s)
            wait_s = min(BACKOFF_MAX_S, wait_s * 2)

    async def close(self) -> None:
        """End every container. Returns when all are gone."""
        metrics.CONTAINERS_LIMIT.labels(self._server).set(0)
        self._closing = True  # a boot under way ends itself, or is ended by the removal of its container
        # A group of its own: the server's may be failing, and start no task any more.
        async with asyncio.TaskGroup() as removals:
            for container in list(self._members):
                self._withdraw(container)
                removals.create_task(self._remove(container))
        async with self._changed:
            await self._changed.wait_for(lambda: not self._members and not self._starting)

    async def post_mortem(self, container: ToolContainer, gone: ServerGone) -> ServerGone:
        return await container.post_mortem(self._engine, gone)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
        stats = self.stats()
        for state, gauge in self._gauges.items():
            gauge.set(stats[state])
