"""Tool calls on MCP servers."""

from __future__ import annotations

import asyncio
from typing import Any

from common.schema import Job
from worker.container import ToolContainer
from worker.errors import ServerGone
from worker.executors.contract import Offer
from worker.mcp_connection import Era, McpConnection
from worker.outbox import Outbox

CANCEL_GRACE_S = 2.0
"""How long a server may take to confirm a cancel by answering the call."""
PROBE_FRACTION = 0.6
"""Part of the start timeout that the era probe may take before the older handshake is tried."""


class McpCall:
    def __init__(self, connection: McpConnection, request_id: int, answer: asyncio.Future[dict[str, Any]]) -> None:
        self._connection = connection
        self._request_id = request_id
        self.answer = answer

    async def stop(self) -> bool:
        """The server's answer to the call, whatever it says, is its confirmation; silence is none."""
        try:
            await self._connection.cancel(self._request_id, "cancelled by the client or timed out")
        except ServerGone:
            return True
        await asyncio.wait({self.answer}, timeout=CANCEL_GRACE_S)
        return self.answer.done()


class McpExecutor:
    """For one catalog entry: remembers the era of its servers, which cannot change under one image."""

    def __init__(self, start_timeout_s: float) -> None:
        self._probe_timeout_s = start_timeout_s * PROBE_FRACTION
        self._era: Era | None = None

    async def prepare(self, container: ToolContainer) -> None:
        await container.connection.handshake(self._era, self._probe_timeout_s)
        self._era = container.connection.era

    async def offer(self, container: ToolContainer) -> Offer:
        connection = container.connection
        return Offer(connection.era, connection.server_info, await connection.list_tools())

    async def begin(self, container: ToolContainer, job: Job, outbox: Outbox) -> McpCall:
        params: dict[str, Any] = {"name": job.tool, "arguments": job.arguments}
        meta = {name: value for name, value in job.meta.items() if name != "progressToken"}
        if meta:
            params["_meta"] = meta
        request_id, answer = await container.connection.send("tools/call", params, outbox.progress)
        return McpCall(container.connection, request_id, answer)

    async def probe(self, container: ToolContainer) -> None:
        await container.connection.ping()
