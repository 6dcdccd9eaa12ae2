"""One socket to one gateway: requests get their answers, events go to a handler."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_socket
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.frames import CloseCode
from websockets.typing import Subprotocol

from client import wire
from client.endpoint import is_local
from client.errors import ConnectionLost, NoAnswer, Refused, Unreachable
from client.event import Event

OPEN_TIMEOUT_S: Final = 10.0
CLOSE_TIMEOUT_S: Final = 2.0
PING_S: Final = 10.0
"""A gateway that vanished without a word is noticed after at most twice this time."""
MAX_FRAME_BYTES: Final = 64 * 1024 * 1024
"""The store holds events of up to 8 MiB; escaped as JSON they can be six times as large."""
MAX_FRAMES_AHEAD: Final = 16
"""Received frames that wait for `read`; then the socket is not read any more."""

OnEvent = Callable[[Event], Awaitable[None]]


class Connection:
    """Made by `Dialer.dial`. Somebody must be in `read` for requests to be answered."""

    def __init__(self, websocket: ClientConnection, codec: wire.Codec, on_event: OnEvent) -> None:
        self._websocket = websocket
        self._codec = codec
        self._on_event = on_event
        self._ids = itertools.count(1)
        self._unanswered: dict[int, _Unanswered] = {}
        self._lost = False
        self.closed_because = ""
        """What the gateway said when it closed the connection: code and reason."""

    async def request(self, method: str, params: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """The result of a method.

        Raises:
            Refused: if the gateway answers with an error.
            NoAnswer: if it does not answer within `timeout_s`.
            ConnectionLost: if the socket closes first; `sent` is False if the request never left.
        """
        async with self._asked(method, params, timeout_s) as answer:
            return await answer

    async def handshake(self, method: str, params: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Like `request`, while nobody is in `read` yet: reads by itself until the answer is there."""
        async with self._asked(method, params, timeout_s) as answer:
            try:
                while not answer.done():
                    await self._take(await self._websocket.recv())
            except ConnectionClosed as exc:
                self._lose(exc)
            return answer.result()

    async def read(self) -> None:
        """Take what comes, until the socket closes.

        Raises:
            ProtocolFault: if it is nothing that a gateway sends.
        """
        closed: ConnectionClosed | None = None
        try:
            while True:
                await self._take(await self._websocket.recv())
        except ConnectionClosed as exc:
            closed = exc
        finally:
            self._lose(closed)

    @asynccontextmanager
    async def _asked(
        self, method: str, params: dict[str, Any], timeout_s: float
    ) -> AsyncIterator[asyncio.Future[dict[str, Any]]]:
        if self._lost:
            raise ConnectionLost(f"the connection closed before {method} was sent")
        id = next(self._ids)
        frame = self._codec.encode(wire.request(id, method, params))
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._unanswered[id] = _Unanswered(answer, len(frame.encode() if isinstance(frame, str) else frame))
        try:
            async with asyncio.timeout(timeout_s):
                # Whoever reads learns of it too, and fails the answer with the reason. The request may have left
                # nevertheless: sending ends with a flush.
                with suppress(ConnectionClosed):
                    await self._websocket.send(frame)
                yield answer
        except TimeoutError as exc:
            raise NoAnswer(method, timeout_s) from exc
        finally:
            del self._unanswered[id]
            if not answer.cancel() and not answer.cancelled():
                answer.exception()  # looked at: asyncio reports errors that nobody saw

    async def _take(self, frame: wire.Frame) -> None:
        message = wire.read(self._codec, frame)
        if isinstance(message, Event):
            await self._on_event(message)
        elif isinstance(message, wire.Answer):
            self._answer(message)

    def _answer(self, answer: wire.Answer) -> None:
        waiting = self._asker(answer)
        if waiting is None or waiting.done():
            return  # its asker has given up
        if answer.refused is not None:
            waiting.set_exception(answer.refused)
        else:
            waiting.set_result(answer.result)

    def _asker(self, answer: wire.Answer) -> asyncio.Future[dict[str, Any]] | None:
        if answer.id is not None:
            found = self._unanswered.get(answer.id)
            return found.answer if found else None
        # The gateway did not read as far as the id. It names the size of what it found too large.
        size = answer.refused.data.get("size") if answer.refused else None
        candidates = [each.answer for each in self._unanswered.values() if size in (None, each.size)]
        return candidates[0] if len(candidates) == 1 or (candidates and size) else None

    def _lose(self, closed: ConnectionClosed | None) -> None:
        """Fail what is unanswered: nothing will be read any more."""
        self._lost = True
        if closed is not None and closed.rcvd:
            self.closed_because = f"{closed.rcvd.code} {closed.rcvd.reason}".rstrip()
        unanswered = [each for each in self._unanswered.values() if not each.answer.done()]
        if unanswered and closed is not None and closed.rcvd and closed.rcvd.code == CloseCode.MESSAGE_TOO_BIG:
            largest = max(unanswered, key=lambda each: each.size)
            refused = Refused(
                413, "payload_too_large", f"the gateway does not take a request of {largest.size:,} bytes"
            )
            largest.answer.set_exception(refused)
            unanswered.remove(largest)
        # A gateway that closes for its own restart has answered whatever it had looked at (docs/protocol.md).
        looked_at = not (closed is not None and closed.rcvd and closed.rcvd.code == CloseCode.SERVICE_RESTART)
        for each in unanswered:
            lost = ConnectionLost("the connection closed before the gateway answered", sent=looked_at)
            each.answer.set_exception(lost)


@dataclass(frozen=True, slots=True)
class _Unanswered:
    answer: asyncio.Future[dict[str, Any]]
    size: int
    """Bytes of the request."""


@dataclass(frozen=True, slots=True)
class Dialer:
    """Whom to call and how."""

    urls: tuple[str, ...]
    """WebSocket addresses of gateways of one cluster; any of them serves any session."""
    key: str
    codec: wire.Codec

    @asynccontextmanager
    async def dial(self, url: str, on_event: OnEvent) -> AsyncIterator[Connection]:
        """A connection, closed on leaving.

        Raises:
            Unreachable: if nobody takes it within OPEN_TIMEOUT_S.
            Refused: if the gateway does not take the key.
        """
        websocket = await self._open(url)
        try:
            yield Connection(websocket, self.codec, on_event)
        finally:
            await websocket.close()

    async def _open(self, url: str) -> ClientConnection:
        try:
            return await open_socket(
                url,
                subprotocols=[Subprotocol(self.codec.protocol)],
                additional_headers={"Authorization": f"Bearer {self.key}"},
                # Frames are small and frequent; deflate would cost more time than it saves.
                compression=None,
                proxy=None if is_local(url) else True,
                open_timeout=OPEN_TIMEOUT_S,
                close_timeout=CLOSE_TIMEOUT_S,
                ping_interval=PING_S,
                ping_timeout=PING_S,
                max_size=MAX_FRAME_BYTES,
                max_queue=MAX_FRAMES_AHEAD,
            )
        except InvalidStatus as exc:
            status = exc.response.status_code
            if status == 401:
                raise Refused(401, "unauthenticated", "the gateway does not take this API key") from exc
            raise Unreachable(url, f"HTTP {status} instead of a WebSocket") from exc
        except TimeoutError as exc:
            raise Unreachable(url, f"no answer within {OPEN_TIMEOUT_S:g} s") from exc
        except socket.gaierror as exc:
            raise Unreachable(url, str(exc.strerror).lower()) from exc
        except (OSError, InvalidHandshake) as exc:
            errno = exc.errno if isinstance(exc, OSError) else None
            raise Unreachable(url, os.strerror(errno).lower() if errno else str(exc)) from exc
