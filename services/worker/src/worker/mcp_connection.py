"""MCP over a container's stdio: JSON-RPC 2.0, one message a line, raw dicts from end to end.

Written by hand because the SDK's client costs three to five times the CPU for each call and drops fields
that it does not know (docs/adr/0004). Speaks both protocol eras: 2026-07-28 (`server/discover`, stateless) and
those before it (`initialize`).
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable
from typing import Any, Literal, TypeGuard

from common.job_errors import JobError
from worker.engine import STDERR, Duplex
from worker.errors import HandshakeFailed, ServerGone, ToolProtocolError
from worker.large_answer import LargeAnswer, LargeLine
from worker.output_stream import OutputLimits

Era = Literal["legacy", "modern"]
OnProgress = Callable[[dict[str, Any]], None]
Answer = dict[str, Any] | LargeAnswer
"""The `result` of a request."""

MODERN_VERSION = "2026-07-28"
LEGACY_VERSION = "2025-11-25"
CLIENT_INFO = {"name": "mcp-orchestrator", "version": "0.1.0"}
_UNSUPPORTED_VERSION = -32022
_METHOD_NOT_FOUND = -32601

STDERR_LINES = 50
STDERR_LINE_CHARS = 500
RUBBISH_LINES = 5
MAX_TOOL_PAGES = 100


class McpConnection:
    """One server's stdio. `read()` must run for anything to be answered; it ends when the server does."""

    def __init__(self, duplex: Duplex) -> None:
        self._duplex = duplex
        self.limits = OutputLimits()
        """What of a line is held, and what of an answer is kept; the executor sets it."""
        self._line = bytearray()
        self._large: LargeLine | None = None
        """The current line where it is too long to be held."""
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._progress: dict[int, OnProgress] = {}
        self._next_id = 0
        self._stderr: deque[str] = deque(maxlen=STDERR_LINES)
        self._rubbish: deque[str] = deque(maxlen=RUBBISH_LINES)
        self._ended: ServerGone | None = None
        self.era: Era = "legacy"
        self.server_info: dict[str, Any] = {}

    @property
    def ended(self) -> bool:
        return self._ended is not None

    @property
    def stderr(self) -> str:
        """The last lines that the server wrote there."""
        return "\n".join(self._stderr)

    # --- reading --------------------------------------------------------------------------------------

    async def read(self) -> None:
        """Dispatch what the server writes until it ends. Every request then waiting fails with ServerGone."""
        reason = "the server ended"
        try:
            while (frame := await self._duplex.read()) is not None:
                if frame.stream == STDERR:
                    self._note_stderr(frame.data)
                    continue
                # Only the new piece is searched: a long line in 32 KiB pieces stays linear.
                start = 0
                while (end := frame.data.find(b"\n", start)) >= 0:
                    self._gather(frame.data[start:end])
                    await self._on_line_end()
                    start = end + 1
                self._gather(frame.data[start:])
        except ServerGone as exc:
            reason = exc.message  # it asked for something, and could not be answered
        finally:
            self._ended = ServerGone(reason, stderr=self.stderr)
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(ServerGone(reason, stderr=self.stderr))
            self._waiting.clear()
            self._progress.clear()
            if self._large is not None:
                self._large.drop()

    def _gather(self, data: bytes) -> None:
        """A piece of the current line: held up to a size, and looked through as it passes beyond it."""
        if self._large is None and len(self._line) + len(data) <= self.limits.collect:
            self._line += data
            return
        if self._large is None:
            self._large = LargeLine(self.limits.most)
            self._large.feed(bytes(self._line))
            self._line.clear()
        self._large.feed(data)

    async def _on_line_end(self) -> None:
        if self._large is None:
            line = bytes(self._line)
            self._line.clear()
            await self._on_line(line)
        else:
            large, self._large = self._large, None
            large.end()
            self._on_large_line(large)

    def _on_large_line(self, large: LargeLine) -> None:
        if not _is_number(large.id):
            self._rubbish.append("a line that is too long and no answer")
            large.drop()
            return
        waiting = self._waiting.pop(large.id, None)
        self._progress.pop(large.id, None)
        if waiting is None or waiting.done():
            large.drop()
            return
        try:
            waiting.set_result(large.answer())
        except JobError as exc:
            waiting.set_exception(exc)

    def _note_stderr(self, data: bytes) -> None:
        for text in data.decode("utf-8", "replace").splitlines():
            self._stderr.append(text[:STDERR_LINE_CHARS])

    async def _on_line(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
            # Servers do print to stdout by mistake; the call that they answer must not suffer from it.
            self._rubbish.append(line[:200].decode("utf-8", "replace"))
            return
        if "method" in message:
            await self._on_server_message(message)
            return
        request_id = message.get("id")
        if not _is_number(request_id):
            return  # every id of ours is one
        waiting = self._waiting.pop(request_id, None)
        self._progress.pop(request_id, None)
        if waiting is None or waiting.done():
            return  # the answer to a call that was given up
        if isinstance(message.get("error"), dict):
            waiting.set_exception(ToolProtocolError(message["error"]))
        elif isinstance(message.get("result"), dict):
            waiting.set_result(message["result"])
        else:
            waiting.set_exception(ToolProtocolError({"message": "the answer has neither a result nor an error"}))

    async def _on_server_message(self, message: dict[str, Any]) -> None:
        params = message.get("params") or {}
        if message["method"] == "notifications/progress":
            token = params.get("progressToken") if isinstance(params, dict) else None
            on_progress = self._progress.get(token) if _is_number(token) else None
            if on_progress is not None:
                on_progress({k: v for k, v in params.items() if k in ("progress", "total", "message")})
        elif "id" in message:
            # A container serves many sessions, so no request of its server can be put to one of them.
            reply: dict[str, Any] = {"jsonrpc": "2.0", "id": message["id"]}
            if message["method"] == "ping":
                reply["result"] = {}
            else:
                reply["error"] = {"code": _METHOD_NOT_FOUND, "message": "this client offers no capabilities"}
            await self._write(reply)

    # --- writing --------------------------------------------------------------------------------------

    async def _write(self, message: dict[str, Any]) -> None:
        if self._ended is not None:
            raise ServerGone(self._ended.message, stderr=self.stderr)
        await self._duplex.write(json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode() + b"\n")

    async def send(
        self, method: str, params: dict[str, Any], on_progress: OnProgress | None = None
    ) -> tuple[int, asyncio.Future[Answer]]:
        """Write a request. The future holds its result, or fails with ToolProtocolError or ServerGone.

        Raises:
            ServerGone: if it could not be written; nothing of it was run then.
        """
        self._next_id += 1
        request_id = self._next_id
        if self.era == "modern":
            params = {**params, "_meta": {**params.get("_meta", {}), **_MODERN_META}}
        if on_progress is not None:
            params = {**params, "_meta": {**params.get("_meta", {}), "progressToken": request_id}}
            self._progress[request_id] = on_progress
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        # An answer that nobody waits for any more must not be reported as a lost exception.
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._waiting[request_id] = answer
        try:
            await self._write({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})
        except BaseException:
            self._waiting.pop(request_id, None)
            self._progress.pop(request_id, None)
            raise
        return request_id, answer

    async def request(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """`send`, and wait for the answer.

        Raises:
            ResultTooLarge: if it is larger than any answer to this has to be.
        """
        _, answer = await self.send(method, params)
        result = await answer
        if isinstance(result, LargeAnswer):
            try:
                return result.parsed()
            finally:
                result.close()
        return result

    async def notify(self, method: str, params: dict[str, Any]) -> None:
        await self._write({"jsonrpc": "2.0", "method": method, "params": params})

    async def cancel(self, request_id: int, reason: str) -> None:
        """Tell the server to give a call up. Whether it did, only its answer or its end can show."""
        await self.notify("notifications/cancelled", {"requestId": request_id, "reason": reason})

    # --- conversation with the server itself -----------------------------------------------------------

    async def handshake(self, known_era: Era | None, probe_timeout_s: float) -> None:
        """Agree on the protocol: the known era, else `server/discover` and, if that gives nothing, `initialize`.

        A server locks its era on the first request, so the probe has to outlast a cold start. The caller
        bounds the whole by its own deadline.

        Raises:
            HandshakeFailed: if the server answers `initialize` with an error, or ends.
        """
        try:
            if known_era == "modern" or (known_era is None and await self._is_modern(probe_timeout_s)):
                self.era = "modern"
                if not self.server_info:
                    self._note_server(await self.request("server/discover", {}))
                return
            result = await self.request(
                "initialize", {"protocolVersion": LEGACY_VERSION, "capabilities": {}, "clientInfo": CLIENT_INFO}
            )
            self._note_server(result)
            await self.notify("notifications/initialized", {})
        except JobError as exc:
            raise HandshakeFailed(self.describe_failure(f"the MCP handshake failed: {exc.message}")) from exc

    async def _is_modern(self, timeout_s: float) -> bool:
        self.era = "modern"  # the probe itself carries the modern envelope
        try:
            async with asyncio.timeout(timeout_s):
                self._note_server(await self.request("server/discover", {}))
            return True
        except ToolProtocolError as exc:
            return exc.data.get("code") == _UNSUPPORTED_VERSION
        except TimeoutError:
            return False
        finally:
            self.era = "legacy"

    def _note_server(self, result: dict[str, Any]) -> None:
        meta = result.get("_meta")
        told = result.get("serverInfo") or (isinstance(meta, dict) and meta.get("io.modelcontextprotocol/serverInfo"))
        self.server_info = told if isinstance(told, dict) else {}

    async def list_tools(self) -> list[dict[str, Any]]:
        """Every tool of the server, all pages.

        Raises:
            HandshakeFailed: if the server does not answer it properly.
        """
        tools: list[dict[str, Any]] = []
        params: dict[str, Any] = {}
        for _ in range(MAX_TOOL_PAGES):
            try:
                page = await self.request("tools/list", params)
            except JobError as exc:
                raise HandshakeFailed(self.describe_failure(f"tools/list failed: {exc.message}")) from exc
            listed = page.get("tools")
            if not isinstance(listed, list):
                raise HandshakeFailed("tools/list failed: the answer has no list of tools")
            tools += [tool for tool in listed if isinstance(tool, dict) and isinstance(tool.get("name"), str)]
            if page.get("nextCursor") is None:  # an empty cursor is a valid one
                return tools
            params = {"cursor": page["nextCursor"]}
        raise HandshakeFailed(f"tools/list did not end after {MAX_TOOL_PAGES} pages")

    async def ping(self) -> None:
        """Health: the modern era has no ping, so it is asked to describe itself."""
        await self.request("server/discover" if self.era == "modern" else "ping", {})

    def describe_failure(self, what: str) -> str:
        """`what`, with what the server printed instead of protocol: that names the cause more often than not."""
        if self._rubbish:
            what += "; on stdout it printed: " + " | ".join(self._rubbish)
        if self._stderr:
            what += "; on stderr: " + " | ".join(list(self._stderr)[-5:])
        return what


def _is_number(value: Any) -> TypeGuard[int]:
    """A JSON number without a fraction; Python counts True and False among them."""
    return isinstance(value, int) and not isinstance(value, bool)


_MODERN_META = {
    "io.modelcontextprotocol/protocolVersion": MODERN_VERSION,
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": CLIENT_INFO,
}
