"""A client that writes down every event exactly as it came, over any number of connections.

It speaks the protocol itself (docs/protocol.md), so that nothing between it and the gateway may sort, repair or leave
out. When a connection ends it resumes at the next gateway with the number of the last event that it has.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.typing import Subprotocol

from tests.chaos.proxy import reset

OPEN_TIMEOUT_S = 5.0
REQUEST_TIMEOUT_S = 8.0
RECONNECT_MIN_S, RECONNECT_MAX_S = 0.05, 0.5
SLOW_STEP_S = 0.3


class Lost(Exception):
    """The answer did not come: what was asked for may or may not have happened."""


class Refused(Exception):
    """The gateway answered with an error."""

    def __init__(self, method: str, error: dict[str, Any]) -> None:
        super().__init__(f"{method}: {error['message']}")
        self.type: str = error.get("data", {}).get("type", str(error["code"]))
        self.retry_after_s = float(error.get("data", {}).get("retry_after_s", 0))


class SeenEvent(NamedTuple):
    seq: int
    job: str
    attempt: int
    type: str


@dataclass
class Seen:
    """A session as its client saw it."""

    session: str
    epoch: str
    start_seq: int
    """Events with higher numbers were to come."""
    events: list[SeenEvent] = field(default_factory=list)
    closing: bool = False
    """The client has asked for its end."""
    left: bool = False
    """The client has closed it, or follows it no longer."""
    gaps: list[str] = field(default_factory=list)
    """Resumes that were not `recovered`."""
    ended: set[str] = field(default_factory=set)
    """Jobs whose terminal event came."""

    @property
    def seq(self) -> int:
        return self.events[-1].seq if self.events else self.start_seq


class Client:
    """`run()` must run. One session at a time; `seen` has all of them."""

    def __init__(self, name: str, urls: list[str], key: str, rng: random.Random, patience_s: float) -> None:
        self.name = name
        self.seen: list[Seen] = []
        self.faults: list[str] = []
        """Sessions that could not be resumed."""
        self.connections = 0
        self.moved = asyncio.Condition()
        """Notified with every event."""
        self._urls = urls
        self._key = key
        self._rng = rng
        self._patience_s = patience_s
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._socket: ClientConnection | None = None
        self._up = asyncio.Event()
        self._away_until = 0.0
        self._slow_until = 0.0

    @property
    def current(self) -> Seen | None:
        return self.seen[-1] if self.seen and not self.seen[-1].left else None

    # --- faults ---------------------------------------------------------------------------------------

    def vanish(self, seconds: float) -> None:
        """The socket is reset; the client stays away for that long."""
        self._away_until = time.monotonic() + seconds
        if self._socket is not None:
            reset(self._socket.transport)

    def slow_down(self, seconds: float) -> None:
        """Take one event every SLOW_STEP_S for that long."""
        self._slow_until = time.monotonic() + seconds

    def speed_up(self) -> None:
        self._slow_until = 0.0

    # --- requests -------------------------------------------------------------------------------------

    async def open_session(self) -> Seen:
        """A new session, followed from now on in place of the one before."""
        opened = await self.request("session/open", {})
        if (current := self.current) is not None:
            current.left = True
        seen = Seen(opened["session"], opened["epoch"], opened["seq"])
        self.seen.append(seen)
        return seen

    async def request(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """The result.

        Raises:
            Lost: if the connection ends first, or there is no answer within REQUEST_TIMEOUT_S.
            Refused: if the answer is an error.
        """
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                await self._up.wait()
                socket = self._socket
                if socket is None:
                    raise Lost(method)
                return await self._ask(socket, method, params)
        except TimeoutError as exc:
            raise Lost(method) from exc

    async def _ask(self, socket: ClientConnection, method: str, params: dict[str, Any]) -> dict[str, Any]:
        id = next(self._ids)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[id] = answer
        try:
            await socket.send(json.dumps({"jsonrpc": "2.0", "id": id, "method": method, "params": params}))
            message = await answer
        except ConnectionClosed as exc:
            raise Lost(method) from exc
        finally:
            del self._waiting[id]
        if "error" in message:
            raise Refused(method, message["error"])
        result: dict[str, Any] = message["result"]
        return result

    # --- connections ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep connected until cancelled, each time at the next gateway."""
        first = self._rng.randrange(len(self._urls))
        for number in itertools.count(first):
            await asyncio.sleep(max(0.0, self._away_until - time.monotonic()))
            await self._connect(self._urls[number % len(self._urls)])
            await asyncio.sleep(self._rng.uniform(RECONNECT_MIN_S, RECONNECT_MAX_S))

    async def _connect(self, url: str) -> None:
        """Serve one connection until it ends."""
        try:
            socket = await connect(
                url,
                subprotocols=[Subprotocol("mcp.json")],
                additional_headers={"Authorization": f"Bearer {self._key}"},
                compression=None,
                proxy=None,
                open_timeout=OPEN_TIMEOUT_S,
                close_timeout=0.5,
                ping_interval=self._patience_s,
                ping_timeout=self._patience_s,
                max_size=None,
            )
        except (OSError, TimeoutError, WebSocketException):
            return
        self.connections += 1
        self._socket = socket
        try:
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(self._read(socket))
                try:
                    if await self._join(socket):
                        self._up.set()
                        await asyncio.wait({reading})
                finally:
                    reading.cancel()
        finally:
            self._up.clear()
            self._socket = None
            socket.transport.abort()
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(Lost("the connection ended"))

    async def _join(self, socket: ClientConnection) -> bool:
        """Resume the session, if there is one. False if it could not be resumed now."""
        seen = self.current
        if seen is None:
            return True
        params = {"session": seen.session, "epoch": seen.epoch, "seq": seen.seq}
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                opened = await self._ask(socket, "session/open", params)
        except (Lost, TimeoutError):
            return False
        except Refused as refused:
            if refused.type == "store_unavailable":
                return False
            if not seen.closing:
                self.faults.append(f"resume of {seen.session} refused as {refused.type}: {refused}")
            seen.left = True
            return True
        if not opened["recovered"]:
            at = f"at {time.time_ns() // 1_000_000}"
            seen.gaps.append(f"{at} from {seen.epoch}:{params['seq']}, answered {opened['epoch']}:{opened['seq']}")
        return True

    async def _read(self, socket: ClientConnection) -> None:
        """Take what comes until the connection ends."""
        try:
            async for frame in socket:
                message = json.loads(frame)
                if "method" in message:
                    await self._take(message["params"])
                elif (answer := self._waiting.get(message["id"])) is not None and not answer.done():
                    answer.set_result(message)
        except ConnectionClosed:
            pass
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(Lost("the connection ended"))

    async def _take(self, event: dict[str, Any]) -> None:
        seen = self.current
        if seen is not None and event["session"] == seen.session:
            seen.events.append(SeenEvent(event["seq"], event["job"], event["attempt"], event["type"]))
            if event["type"] == "result":
                seen.ended.add(event["job"])
            async with self.moved:
                self.moved.notify_all()
        if time.monotonic() < self._slow_until:
            await asyncio.sleep(SLOW_STEP_S)
