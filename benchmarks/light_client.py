"""A WebSocket client of which ten thousand fit into a process beside what is measured: one session, calls, resume.

It speaks the gateway's protocol (docs/protocol.md) over RFC 6455 by itself, as it must cost little: no tasks of its
own, a few hundred bytes of state. It checks what it gets: every event of a call once, in order, up to its result.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import struct
from time import perf_counter
from typing import Any, Final, cast

_KEY: Final = "development"
_HEADER_END: Final = b"\r\n\r\n"
_TEXT: Final = 0x81
_PONG: Final = 0x8A
_CLOSE: Final = 0x8
_PING: Final = 0x9
_MASKED: Final = 0x80
_NO_MASK: Final = b"\0\0\0\0"
"""Masking with zeros is masking, and leaves the bytes as they are."""


class Broken(Exception):
    """The gateway answered with an error, or with what the protocol does not allow. Says what."""


class Lost(Exception):
    """The connection ended."""


class Wire(asyncio.Protocol):
    """One connection: frames in and out. `on_message` gets each text message, `on_end` is called once."""

    def __init__(self, client: LightClient) -> None:
        self._client = client
        self._buffer = b""
        self._upgraded: asyncio.Future[None] | None = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport | None = None

    async def upgraded(self) -> None:
        """
        Raises:
            Lost: if the connection ends before.
        """
        assert self._upgraded is not None
        await self._upgraded
        self._upgraded = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's does not derive from it
        key = base64.b64encode(os.urandom(16)).decode()
        self.transport.write(
            f"GET /v1/ws HTTP/1.1\r\nHost: gateway\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nAuthorization: Bearer {_KEY}\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if self._upgraded is not None and not self._upgraded.done():
            head, found, rest = data.partition(_HEADER_END)
            if not found:
                self._buffer = data
                return
            if not head.startswith(b"HTTP/1.1 101"):
                self._upgraded.set_exception(Broken(data.decode(errors="replace")))
                transport.abort()
                return
            self._upgraded.set_result(None)
            data = rest
        self._buffer = self._take_frames(data)

    def _take_frames(self, data: bytes) -> bytes:
        """Hand on every whole frame. Returns what is left."""
        at = 0
        while len(data) - at >= 2:
            size, start = data[at + 1], at + 2
            if size == 126:
                if len(data) < at + 4:
                    break
                size, start = struct.unpack_from("!H", data, at + 2)[0], at + 4
            elif size == 127:
                if len(data) < at + 10:
                    break
                size, start = struct.unpack_from("!Q", data, at + 2)[0], at + 10
            if len(data) < start + size:
                break
            self._take(data[at] & 0xF, data[start : start + size])
            at = start + size
        return data[at:]

    def _take(self, opcode: int, payload: bytes) -> None:
        if opcode == _PING:
            self._write(_PONG, payload)
        elif opcode != _CLOSE:
            self._client.take(json.loads(payload))

    def abort(self) -> None:
        assert self.transport is not None
        self.transport.abort()

    def send(self, message: dict[str, Any]) -> None:
        self._write(_TEXT, json.dumps(message).encode())

    def _write(self, first: int, payload: bytes) -> None:
        assert self.transport is not None
        size = len(payload)
        head = bytes([first, _MASKED | size]) if size < 126 else struct.pack("!BBH", first, _MASKED | 126, size)
        self.transport.write(head + _NO_MASK + payload)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._upgraded is not None and not self._upgraded.done():
            self._upgraded.set_exception(Lost(str(exc or "closed")))
        self._client.ended(self)


class Call:
    """One call, from its request to its result."""

    __slots__ = ("begun", "done", "events", "job", "key")

    def __init__(self, key: str) -> None:
        self.key = key
        self.begun = perf_counter()
        self.job: str | None = None
        self.events: list[str] = []
        self.done: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        """Milliseconds from the request to the result."""


class LightClient:
    """One session of one user, over one connection after another."""

    __slots__ = ("_answers", "_call", "_numbers", "_wire", "epoch", "faults", "seq", "session")

    def __init__(self) -> None:
        self.session: str | None = None
        self.epoch = ""
        self.seq = 0
        self.faults: list[str] = []
        """What the gateway did that it must not do: events twice, out of order, of nobody; a position forgotten."""
        self._wire: Wire | None = None
        self._numbers = 0
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._call: Call | None = None

    @property
    def connected(self) -> bool:
        return self._wire is not None

    @property
    def pending(self) -> Call | None:
        """The call that has no result yet."""
        return self._call

    async def connect(self, port: int) -> None:
        """Open a session, or come back to the one that there is and have what was missed.

        Raises:
            OSError, Lost: if the gateway is not there.
            Broken: if it refuses.
        """
        loop = asyncio.get_running_loop()
        _, wire = await loop.create_connection(lambda: Wire(self), "127.0.0.1", port)
        try:
            await wire.upgraded()
            self._wire = wire
            place = {"session": self.session, "epoch": self.epoch, "seq": self.seq} if self.session else {}
            opened = await self.request("session/open", place)
        except BaseException:
            wire.abort()  # whoever gives up and comes again must not have two
            raise
        if self.session is None:
            self.session, self.epoch, self.seq = opened["session"], opened["epoch"], opened["seq"]
        elif not opened["recovered"]:
            self.faults.append("the gateway no longer had what was missed")

    def disconnect(self) -> None:
        if self._wire is not None:
            self._wire.abort()

    async def request(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """
        Raises:
            Lost: if the connection ends before the answer.
            Broken: if the answer is an error.
        """
        if self._wire is None:
            raise Lost("not connected")
        self._numbers += 1
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[self._numbers] = answer
        self._wire.send({"jsonrpc": "2.0", "id": self._numbers, "method": method, "params": params})
        return await answer

    async def call(self, server: str, tool: str, arguments: dict[str, Any]) -> float:
        """Milliseconds to the result. If the connection is lost meanwhile, it goes on over the next one.

        Raises:
            Lost: if it is lost before the job was accepted; `repeat()` sends it again on the next connection.
        """
        call = self._call = Call(os.urandom(8).hex())
        await self._send_call(call, server, tool, arguments)
        return await call.done

    async def repeat(self, server: str, tool: str, arguments: dict[str, Any]) -> None:
        """Send the pending call again, under its idempotency key: it runs once, whether or not it was accepted."""
        assert self._call is not None
        await self._send_call(self._call, server, tool, arguments)

    async def _send_call(self, call: Call, server: str, tool: str, arguments: dict[str, Any]) -> None:
        params = {"session": self.session, "server": server, "name": tool, "arguments": arguments}
        accepted = await self.request("tools/call", {**params, "idempotencyKey": call.key})
        call.job = accepted["job"]

    def take(self, message: dict[str, Any]) -> None:
        """A message came."""
        if "id" in message:
            answer = self._answers.pop(message["id"])
            if answer.done():
                return  # nobody waits for it any more
            if "error" in message:
                answer.set_exception(Broken(str(message["error"])))
            else:
                answer.set_result(message["result"])
            return
        event = message["params"]
        if event["seq"] <= self.seq:
            self.faults.append(f"event {event['seq']} came behind {self.seq}")
            return
        self.seq = event["seq"]
        if event["type"] == "progress" and event["attempt"] == 0:
            return  # a place in the queue, which may be told after the end
        call = self._call
        if call is None:
            self.faults.append(f"an event of no call: {event['type']}")
            return
        call.events.append(event["type"])
        if event["type"] == "result":
            self._call = None
            if event["data"]["outcome"] != "succeeded":
                self.faults.append(f"the call failed: {event['data']}")
            # The two come in either order: `queued` is written beside the job, which a free worker has at once.
            if not {"queued", "started"} <= set(call.events):
                self.faults.append(f"events of a call are missing: {call.events}")
            if not call.done.done():
                call.done.set_result((perf_counter() - call.begun) * 1000)

    def ended(self, wire: Wire) -> None:
        """A connection ended."""
        if wire is not self._wire:
            return
        self._wire = None
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(Lost("the connection ended before the answer"))
        self._answers.clear()
