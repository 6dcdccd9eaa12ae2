"""Tool calls on MCP servers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from common import tracing
from common.schema import Job
from worker.container import ToolContainer
from worker.errors import AnswerNotKept, ServerGone
from worker.executors.contract import Offer
from worker.large_answer import LargeAnswer
from worker.mcp_connection import Answer, Era, McpConnection
from worker.outbox import Outbox
from worker.output_stream import OutputLimits

CANCEL_GRACE_S = 2.0
"""How long a server may take to confirm a cancel by answering the call."""
PROBE_FRACTION = 0.6
"""Part of the start timeout that the era probe may take before the older handshake is tried."""


class McpCall:
    """`answered` is the server's answer. One too large to be held, or wanted as an artifact, leaves as output."""

    def __init__(
        self,
        connection: McpConnection,
        request_id: int,
        answered: asyncio.Future[Answer],
        outbox: Outbox,
        tasks: asyncio.TaskGroup,
        *,
        as_artifact: bool,
    ) -> None:
        self._connection = connection
        self._request_id = request_id
        self._outbox = outbox
        self._tasks = tasks
        self._as_artifact = as_artifact
        self._relaying: asyncio.Task[None] | None = None
        self.answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.answer.add_done_callback(lambda done: done.cancelled() or done.exception())
        answered.add_done_callback(self._on_answered)

    def _on_answered(self, answered: asyncio.Future[Answer]) -> None:
        if failure := answered.exception():
            self.answer.set_exception(failure)
            return
        answer = answered.result()
        if isinstance(answer, LargeAnswer) or self._as_artifact:
            self._relaying = self._tasks.create_task(self._relay(answer))
        else:
            self.answer.set_result(answer)

    async def _relay(self, answer: Answer) -> None:
        try:
            if isinstance(answer, LargeAnswer):
                is_error = answer.is_error
                async for chunk in answer.chunks():
                    await self._outbox.output("result", chunk)
            else:
                is_error = answer.get("isError") is True
                await self._outbox.output("result", json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace"))
            await self._outbox.end_output()
        except asyncio.CancelledError:
            self.answer.set_exception(ServerGone("the answer was not wanted any more"))
            raise
        except OSError as exc:
            self.answer.set_exception(AnswerNotKept(0, str(exc.strerror)))
        else:
            preview = self._outbox.written("result").text
            self.answer.set_result({"content": [{"type": "text", "text": preview}], "isError": is_error})
        finally:
            if isinstance(answer, LargeAnswer):
                answer.close()

    async def stop(self) -> bool:
        """The server's answer to the call, whatever it says, is its confirmation; silence is none."""
        if self._relaying is not None:
            self._relaying.cancel()
            await asyncio.wait({self._relaying})
            return True
        try:
            await self._connection.cancel(self._request_id, "cancelled by the client or timed out")
        except ServerGone:
            return True
        await asyncio.wait({self.answer}, timeout=CANCEL_GRACE_S)
        return self.answer.done() or self._relaying is not None


class McpExecutor:
    """For one catalog entry: remembers the era of its servers, which cannot change under one image."""

    def __init__(self, start_timeout_s: float, tasks: asyncio.TaskGroup, limits: OutputLimits) -> None:
        self._tasks = tasks
        self._limits = limits
        self._probe_timeout_s = start_timeout_s * PROBE_FRACTION
        self._era: Era | None = None

    async def prepare(self, container: ToolContainer) -> None:
        container.connection.limits = self._limits
        await container.connection.handshake(self._era, self._probe_timeout_s)
        self._era = container.connection.era

    async def offer(self, container: ToolContainer) -> Offer:
        connection = container.connection
        return Offer(connection.era, connection.server_info, await connection.list_tools())

    async def begin(self, container: ToolContainer, job: Job, outbox: Outbox) -> McpCall:
        params: dict[str, Any] = {"name": job.tool, "arguments": job.arguments}
        meta = {name: value for name, value in job.meta.items() if name != "progressToken"}
        attributes = {
            "mcp.method.name": "tools/call",
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": job.tool,
            "network.transport": "pipe",
        }
        calling = tracing.span(f"tools/call {job.tool}", "client", None, attributes)
        if calling.traceparent:
            meta["traceparent"] = calling.traceparent
        if meta:
            params["_meta"] = meta
        connection = container.connection
        try:
            request_id, answered = await connection.send("tools/call", params, outbox.progress)
        except ServerGone as exc:
            calling.fail(exc.type)
            calling.end()
            raise
        calling.set({"jsonrpc.request.id": str(request_id)})
        answered.add_done_callback(lambda done: _end_span(calling, done))
        return McpCall(connection, request_id, answered, outbox, self._tasks, as_artifact=job.artifact)

    async def probe(self, container: ToolContainer) -> None:
        await container.connection.ping()


def _end_span(calling: tracing.Span, answered: asyncio.Future[Answer]) -> None:
    if answered.cancelled():
        calling.fail("cancelled")
    elif failure := answered.exception():
        calling.fail(str(getattr(failure, "type", type(failure).__name__)))
    else:
        answer = answered.result()
        is_error = answer.is_error if isinstance(answer, LargeAnswer) else answer.get("isError") is True
        if is_error:
            calling.fail("tool_error")
    calling.end()
