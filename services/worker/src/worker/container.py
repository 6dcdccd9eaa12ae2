"""One tool container from boot to proof of its end."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import monotonic

from common.catalog import ServerSpec
from worker.engine import FILES_DIR, ContainerEngine, ContainerSpec, Duplex
from worker.errors import EngineUnavailable, ServerGone
from worker.mcp_connection import McpConnection

INSPECT_TIMEOUT_S = 5.0


@dataclass(eq=False)
class ToolContainer:
    """A started container. Belongs to the pool that booted it."""

    id: str
    duplex: Duplex
    connection: McpConnection
    reading: asyncio.Task[None] | None = None
    """Follows the output; ends with the container."""
    booted_at: float = field(default_factory=monotonic)
    calls: int = 0
    """Calls that it was given so far."""
    busy: int = 0
    """Calls, or a lease, that hold it now."""
    retired: bool = False
    """Takes no new call; goes when nothing holds it."""
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the engine has confirmed that it no longer exists."""

    @property
    def usable(self) -> bool:
        return not (self.retired or self.connection.ended)

    async def post_mortem(self, engine: ContainerEngine, gone: ServerGone) -> ServerGone:
        """`gone`, with what the engine knows of the end: the streams alone look the same for every cause."""
        try:
            async with asyncio.timeout(INSPECT_TIMEOUT_S):
                state = await engine.inspect(self.id)
        except (EngineUnavailable, TimeoutError):
            return ServerGone(f"{gone.message}; the container engine does not answer", stderr=self.connection.stderr)
        if state is None:
            return ServerGone(f"{gone.message}; its container was removed", stderr=self.connection.stderr)
        if state.running:
            return ServerGone(gone.message, stderr=self.connection.stderr)
        why = f"the server ended with exit code {state.exit_code}"
        if state.oom_killed and state.exit_code == 137:
            why = "the server ran out of memory and was killed"
        return ServerGone(
            f"{why} during the call",
            exit_code=state.exit_code,
            oom_killed=state.oom_killed,
            stderr=self.connection.stderr,
        )


def container_spec(
    server: str, spec: ServerSpec, env: Mapping[str, str], command: list[str] | None, labels: Mapping[str, str]
) -> ContainerSpec:
    """The container of a catalog entry, with its secrets looked up in `env`.

    Only one that belongs to a session has a files directory: elsewhere a file would be there for others, or for nobody.
    """
    keeps_files = spec.scope == "session"
    return ContainerSpec(
        image=spec.image,
        command=command,
        env={**env, "FILES_DIR": FILES_DIR} if keeps_files else env,
        labels={**labels, "mcp-orchestrator.server": server, "mcp-orchestrator.scope": spec.scope},
        limits=spec.limits,
        network=spec.network,
        runtime=spec.runtime,
        files_mb=spec.limits.files_mb if keeps_files else None,
    )
