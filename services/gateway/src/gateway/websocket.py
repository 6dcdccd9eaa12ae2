"""The WebSocket door: JSON-RPC requests in, answers and the joined sessions' events out."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any, Final

from starlette.types import Receive, Scope, Send

from common.allowance import Allowance
from common.errors import InvalidRequest, PayloadTooLarge, ServiceError
from common.log import get
from gateway import jsonrpc
from gateway.authentication import TENANT
from gateway.codec import CODECS, DEFAULT_CODEC, Codec
from gateway.connections import Connections
from gateway.following import follow
from gateway.methods import Caller, Methods
from gateway.problem import InternalError, problem
from gateway.sender import SENDER, Sender
from gateway.settings import GatewaySettings
from gateway.store import Store

_log = get(__name__)

SERVICE_RESTART: Final = 1012
TRY_AGAIN_LATER: Final = 1013
STALLED: Final = 4008
"""Our own (RFC 6455 leaves 4000-4999 to applications): the client read nothing. It resumes, here or elsewhere."""
ANSWERS_WITHIN_S: Final = 5.0
"""How long a draining connection waits for the answers that it owes; NATS's own timeout."""


UNHURRIED: Final = frozenset({"queued", "started"})
"""Events that nobody acts on: they wait a moment for company, so that a short call wakes its client twice instead
of four times. On two busy cores that is a tenth of the call's time, for the tool and for the client."""
HOLD_S: Final = 0.002
MAX_HELD: Final = 64

LARGE: Final = frozenset({"job/get", "dead_letters/show"})
"""Methods whose answer may be as large as a stored message. A client that asks for many of them has few at a time."""
LARGE_AT_ONCE: Final = 4


class WebSocketDoor:
    """ASGI endpoint of `/v1/ws`; `Authentication` stands before it."""

    def __init__(self, settings: GatewaySettings, store: Store, methods: Methods, connections: Connections) -> None:
        self._settings = settings
        self._store = store
        self._methods = methods
        self._connections = connections

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        offered = scope["subprotocols"]
        chosen = next((name for name in offered if name in CODECS), None)
        if offered and chosen is None:
            refusal = InvalidRequest(f"none of the subprotocols is known here; known ones: {', '.join(CODECS)}")
            await problem(refusal)(scope, receive, send)
            return
        await receive()  # websocket.connect
        await send({"type": "websocket.accept", "subprotocol": chosen, "headers": []})
        codec = CODECS[chosen] if chosen else DEFAULT_CODEC
        caller, sender = Caller(scope["state"][TENANT]), scope["state"][SENDER]
        connection = WebSocketConnection(self._settings, self._store, self._methods, caller, codec, receive, sender)
        with self._connections.holding(connection, "websocket"):
            if self._connections.draining:
                await connection.drain()
            await connection.serve()


class WebSocketConnection:
    """One accepted WebSocket.

    What it holds is bounded: so many requests are answered at once, then the socket is not read; every answer
    and every event waits for the client to take the one before, and events that wait are in the store. If the client
    takes nothing any more it is parted from.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        store: Store,
        methods: Methods,
        caller: Caller,
        codec: Codec,
        receive: Receive,
        sender: Sender,
    ) -> None:
        self._settings = settings
        self._store = store
        self._methods = methods
        self._caller = caller
        self._codec = codec
        self._receive = receive
        self._sender = sender
        self._allowance = Allowance(settings.send_budget_bytes)
        self._sending = asyncio.Lock()
        self._room = asyncio.Semaphore(settings.max_requests_per_connection)
        self._room_for_large = asyncio.Semaphore(LARGE_AT_ONCE)
        self._tasks = asyncio.TaskGroup()
        self._answering: set[asyncio.Task[None]] = set()
        self._held: list[dict[str, Any]] = []
        self._feeds: dict[str, asyncio.Task[None]] = {}
        self._opening = 0
        self._draining = False
        self._over = False
        self._closed = False
        self._gone: asyncio.Event | None = None
        """Made when it is waited for."""

    @property
    def sessions(self) -> int:
        return len(self._feeds)

    async def serve(self) -> None:
        """Returns when the client has gone, and every request that it sent has been dealt with."""
        async with self._tasks:
            self._sender.on_stalled = self._part
            try:
                await self._read()
            finally:
                self._sender.on_stalled = self._sender.cut
                self._stop_feeds()
                if self._gone is not None:
                    self._gone.set()

    async def drain(self) -> None:
        """Take no more requests, answer those that came, close. The client resumes elsewhere.

        The code tells it what it may repeat: after 1012 nothing that is unanswered was looked at.
        """
        self._draining = True
        code = SERVICE_RESTART
        if self._answering:
            _, late = await asyncio.wait(self._answering, timeout=ANSWERS_WITHIN_S)
            code = TRY_AGAIN_LATER if late else SERVICE_RESTART
        self._stop_feeds()
        await self._close(code, "the gateway restarts")

    def _part(self) -> None:
        """The client reads nothing. What is kept for it is let go; a little later so is the connection."""
        self._closed = True
        self._stop_feeds()
        self._gone = asyncio.Event()
        self._tasks.create_task(self._say_why(self._gone))

    async def _say_why(self, gone: asyncio.Event) -> None:
        """A client that wakes up in time reads what was sent before, and then why no more comes."""
        waits_s = self._settings.stalled_client_s
        reason = f"nothing was read for {waits_s:g} s: resume from your last event"
        try:
            async with asyncio.timeout(waits_s):
                # Behind the message that the client does not take, not behind those that wait for their turn.
                await self._sender.send({"type": "websocket.close", "code": STALLED, "reason": reason})
                await gone.wait()
        except TimeoutError:
            self._sender.cut()

    # --- requests -------------------------------------------------------------------------------------

    async def _read(self) -> None:
        while (message := await self._receive())["type"] == "websocket.receive":
            await self._room.acquire()
            # Looked at only now: the goodbye may have come while the request waited for its turn.
            if self._draining or self._closed:
                self._room.release()
                continue
            text = message.get("text")
            task = self._tasks.create_task(self._answer(message["bytes"] if text is None else text))
            self._answering.add(task)
            task.add_done_callback(self._answered)

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._answering.discard(task)
        self._room.release()

    async def _answer(self, frame: str | bytes) -> None:
        request_id = None
        try:
            message = self._decode(frame)
            request_id = jsonrpc.id_of(message)
            method, params = jsonrpc.parse(message)
            if method == "session/open":
                await self._open(request_id, params)
                return
            if method in LARGE:
                async with self._room_for_large:
                    await self._send(jsonrpc.result(request_id, await self._call(method, params)))
                return
            answer = jsonrpc.result(request_id, await self._call(method, params))
            if method == "session/close":
                self._stop_feed(answer["result"]["session"])
        except ServiceError as exc:
            answer = jsonrpc.error(request_id, exc)
        except Exception:  # noqa: BLE001 - the client is owed an answer, and the log has the rest
            _log.exception("request failed")
            answer = jsonrpc.error(request_id, InternalError())
        await self._send(answer)

    async def _call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        return await self._methods.call(self._caller, method, params)

    def _decode(self, frame: str | bytes) -> Any:
        size = self._codec.frame_size(frame)
        if size > self._settings.max_request_bytes:
            raise PayloadTooLarge(size, self._settings.max_request_bytes)
        return self._codec.decode(frame)

    async def _open(self, request_id: jsonrpc.RequestId | None, params: dict[str, Any]) -> None:
        """The answer first, then the session's events."""
        self._require_room_for_session(params.get("session"))
        self._opening += 1
        try:
            opened = await self._call("session/open", params)
            session = opened["session"]
            self._stop_feed(session)
            await self._send(jsonrpc.result(request_id, opened))
            self._stop_feed(session)  # of another session/open that was answered at the same time
            if not self._over:
                self._feeds[session] = self._tasks.create_task(self._forward(session, opened["seq"]))
        finally:
            self._opening -= 1

    def _require_room_for_session(self, session: Any) -> None:
        limit = self._settings.max_sessions_per_connection
        carried = isinstance(session, str) and session in self._feeds
        if not carried and len(self._feeds) + self._opening >= limit:
            raise InvalidRequest(f"a socket carries at most {limit} sessions: open another socket", limit=limit)

    # --- events ---------------------------------------------------------------------------------------

    async def _forward(self, session: str, after: int) -> None:
        async with aclosing(follow(self._store, session, after, self._allowance)) as events:
            async for stored in events:
                message = jsonrpc.notification(stored)
                if stored.event.type in UNHURRIED and len(self._held) < MAX_HELD:
                    self._hold(message)
                else:
                    await self._send(message)

    def _stop_feed(self, session: str) -> None:
        feed = self._feeds.pop(session, None)
        if feed:
            feed.cancel()

    def _stop_feeds(self) -> None:
        """For good: a session/open that is still being answered starts none any more."""
        self._over = True
        for session in list(self._feeds):
            self._stop_feed(session)

    # --- out ------------------------------------------------------------------------------------------

    def _hold(self, message: dict[str, Any]) -> None:
        """Send it with the next message, or alone if none comes soon."""
        self._held.append(message)
        if len(self._held) == 1:
            self._tasks.create_task(self._send_held_soon())

    async def _send_held_soon(self) -> None:
        await asyncio.sleep(HOLD_S)
        await self._send()

    async def _send(self, *messages: dict[str, Any]) -> None:
        """Returns when the client's socket has taken them, so a slow client holds up whoever sends to it."""
        async with self._sending:
            # One by one: a feed that is stopped meanwhile takes nothing of the other ones with it.
            while self._held:
                await self._put(self._held.pop(0))
            for message in messages:
                await self._put(message)

    async def _put(self, message: dict[str, Any]) -> None:
        """Encoded only now: of all that wait for their turn one has a second form in memory."""
        if not self._closed:
            await self._sender.send(self._codec.encode(message))

    async def _close(self, code: int, reason: str) -> None:
        """After what was sent before."""
        async with self._sending:
            if not self._closed:
                await self._sender.send({"type": "websocket.close", "code": code, "reason": reason})
                self._closed = True
