"""A provider of models that says what a test wrote down for it, over HTTP as OpenAI and Anthropic do.

    async with run_model_server() as server:
        server.will(Fail(429, retry_after=0), Calls([Call("add", {"a": 1})]), Say("It is 1."))
        ...                                          # whoever is tested asks server.openai_url or server.anthropic_url
        assert server.requests[-1].body["messages"]  # what it was asked, in order

Each request takes the next item of the script, whichever provider it is sent to; a function makes the item of the
request. A request beyond the script is answered with 500.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from tests.model_wire import Call, Calls, Provider, Say, encoded, error_body, wire_events

__all__ = ["Asked", "Break", "Call", "Calls", "Events", "Fail", "Hold", "ModelServer", "Say", "run_model_server"]

PATHS: dict[str, Provider] = {"/chat/completions": "openai", "/v1/messages": "anthropic"}
"""How the path of a request ends; before it stands whatever the base URL has."""


@dataclass(frozen=True)
class Asked:
    """A request."""

    provider: Provider
    path: str
    headers: dict[str, str]
    """By names in lower case."""
    body: dict[str, Any]
    peer: tuple[str, int]
    """Where the client's end of the connection is."""


@dataclass(frozen=True)
class Fail:
    """An answer with an error's status."""

    status: int
    message: str = "no, said the test"
    retry_after: float | str | None = None
    """Seconds or a date. Without it an SDK waits for half a second and more before it tries again."""
    body: str | None = None
    """Instead of the JSON that the provider has for it."""
    breaks: bool = False
    """The connection is closed in the middle of the body."""


@dataclass(frozen=True)
class Events:
    """A stream of events as they are given, for servers that keep loosely to the protocol."""

    data: Sequence[dict[str, Any] | str]


@dataclass(frozen=True)
class Break:
    """An answer that breaks off after some events."""

    after: int
    say: Say
    clean: bool = False
    """HTTP tells the end of the body all the same."""


class Hold:
    """An answer that waits, after some events, until the test lets it go on. With 0 not even its status is sent."""

    def __init__(self, say: Say, after: int = 0) -> None:
        self.say = say
        self.after = after
        self.reached = asyncio.Event()
        """The request is here, and what comes before the wait is sent."""
        self.let_go = asyncio.Event()
        self.left = asyncio.Event()
        """The client has closed the connection meanwhile."""


Item = Say | Fail | Events | Break | Hold
Script = Item | Callable[[Asked], Item]


class ModelServer:
    """Made by `run_model_server()`."""

    def __init__(self) -> None:
        self.requests: list[Asked] = []
        self.url = ""
        """Without a path."""
        self._script: deque[Script] = deque()

    @property
    def openai_url(self) -> str:
        """As OPENAI_BASE_URL would be set."""
        return f"{self.url}/v1"

    @property
    def anthropic_url(self) -> str:
        return self.url

    def will(self, *items: Script) -> None:
        """Answer the requests after those that are written down already."""
        self._script.extend(items)

    @property
    def left_over(self) -> int:
        """Items that no request has taken yet."""
        return len(self._script)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        provider = next((found for end, found in PATHS.items() if request.path.endswith(end)), None)
        if provider is None or request.method != "POST":
            return web.json_response({"error": {"message": f"no such path: {request.path}"}}, status=404)
        headers = {name.lower(): value for name, value in request.headers.items()}
        peer = request.transport.get_extra_info("peername") if request.transport else ("", 0)
        asked = Asked(provider, request.path, headers, json.loads(await request.read()), peer)
        self.requests.append(asked)
        if self._script:
            item = self._script.popleft()
        else:
            item = Fail(500, f"the test's script has no answer to request {len(self.requests)}")
        return await _Answer(request, asked).give(item(asked) if callable(item) else item)


class _Answer:
    """One answer to one request."""

    def __init__(self, request: web.Request, asked: Asked) -> None:
        self._request = request
        self._provider = asked.provider
        self._model = str(asked.body.get("model"))
        self._response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})

    async def give(self, item: Item) -> web.StreamResponse:
        match item:
            case Fail():
                return await self._fail(item)
            case Say():
                await self._send(self._events(item), item.cut)
            case Events(data):
                await self._send([encoded(self._provider, event) for event in data])
            case Break(after, say, clean):
                await self._send(self._events(say)[:after], say.cut)
                if not clean:
                    self._close()
            case Hold():
                await self._hold(item)
        return self._response

    async def _fail(self, fail: Fail) -> web.StreamResponse:
        body = (fail.body or json.dumps(error_body(self._provider, fail.status, fail.message))).encode()
        headers = {"content-type": "text/html" if fail.body else "application/json"}
        if fail.retry_after is not None:
            headers["retry-after"] = str(fail.retry_after)
        if not fail.breaks:
            return web.Response(status=fail.status, body=body, headers=headers)
        self._response = web.StreamResponse(status=fail.status, headers=headers)
        await self._send([body[: len(body) // 2]])
        self._close()
        return self._response

    async def _hold(self, hold: Hold) -> None:
        events = self._events(hold.say)
        if hold.after:
            await self._send(events[: hold.after], hold.say.cut)
        hold.reached.set()
        try:
            await hold.let_go.wait()
        except asyncio.CancelledError:
            hold.left.set()
            raise
        await self._send(events[hold.after :], hold.say.cut)

    def _close(self) -> None:
        """What was written is sent, without the end of the body."""
        if self._request.transport:
            self._request.transport.close()

    def _events(self, say: Say) -> list[bytes]:
        return wire_events(self._provider, say, self._model)

    async def _send(self, events: Sequence[bytes], cut: int | None = None) -> None:
        """One chunk of HTTP for each piece: the client's SDK is handed exactly these."""
        if not self._response.prepared:
            await self._response.prepare(self._request)
        whole = b"".join(events)
        for piece in [whole[start : start + cut] for start in range(0, len(whole), cut)] if cut else events:
            await self._response.write(piece)


@asynccontextmanager
async def run_model_server() -> AsyncIterator[ModelServer]:
    server = ModelServer()
    app = web.Application(client_max_size=64 * 1024**2)
    app.router.add_route("*", "/{path:.*}", server.handle)
    # A handler is cancelled when its client leaves; the answers that are held at the end are not waited for.
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        server.url = f"http://{host}:{port}"
        yield server
    finally:
        await runner.cleanup()
