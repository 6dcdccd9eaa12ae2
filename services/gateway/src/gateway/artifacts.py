"""Artifacts over HTTP: whole or in part, from the object store at the client's pace."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from common.artifacts import SIDE_STREAM, artifact_name
from common.errors import StoreUnavailable, UnknownArtifact
from common.log import get
from common.object_info import ObjectInfo
from common.object_store import PartLost
from gateway.authentication import TENANT
from gateway.conditions import Span, Unsatisfiable, matches, range_holds, span
from gateway.connections import Connections
from gateway.http import answered
from gateway.params import JobParams, validated
from gateway.sessions import Sessions
from gateway.store import Store

_log = get(__name__)

TAKEN_WITHIN_S: Final = 30.0
"""How long a client may take for one chunk. Whoever is slower is cut, and can resume with `Range`."""
GOODBYE_S: Final = 1.0
SUFFIXES: Final = {"text/plain": "txt", "application/json": "json"}
"""Of the file names that are proposed."""


class ArtifactDoor:
    """The artifacts of all sessions; `Authentication` stands before it."""

    def __init__(self, store: Store, sessions: Sessions, connections: Connections) -> None:
        self._store = store
        self._sessions = sessions
        self._connections = connections

    def routes(self) -> list[Route]:
        path = "/sessions/{session}/artifacts/{job}"
        return [
            Route(path, answered(self._output), methods=["GET"]),
            Route(f"{path}/{SIDE_STREAM}", answered(self._side), methods=["GET"]),
        ]

    async def _output(self, request: Request) -> Response:
        return await self._answer(request, "")

    async def _side(self, request: Request) -> Response:
        return await self._answer(request, SIDE_STREAM)

    async def _answer(self, request: Request, stream: str) -> Response:
        """
        Raises:
            InvalidParams: if one of the ids is none.
            UnknownSession: as for every method.
            UnknownArtifact: if there is nothing of it, or nothing any more.
            StoreUnavailable: if the store does not answer.
        """
        ids = validated(JobParams, request.path_params)
        await self._sessions.require(request.scope["state"][TENANT], ids.session)
        bus = self._store.bus
        info = await bus.object_info(artifact_name(ids.session, ids.job, stream))
        if info is None:
            raise UnknownArtifact(ids.job)
        etag = f'"sha256-{info.sha256}"'
        headers = _headers(info, etag, f"{ids.job}-{stream}" if stream else ids.job)
        if matches(request.headers.get("if-none-match"), etag):
            return Response(None, 304, headers)
        part = _part(request, info.size, etag)
        start, end = part or Span(0, info.size)
        if part:
            headers["Content-Range"] = part.content_range(info.size)
        headers["Content-Length"] = str(end - start)
        reading = bus.read_object(info, start, end)
        try:
            # Before anything is promised: chunks may be gone while the object's name is still there.
            first = await anext(reading, b"")
        except PartLost as exc:
            raise UnknownArtifact(ids.job) from exc
        if request.method == "HEAD":
            await reading.aclose()
            return Response(None, 200, headers, info.media_type)
        return Download(self._connections, reading, first, 206 if part else 200, headers, info)


class Download(Response):
    """The answer to a GET: ends early when the client goes or does not read, the store fails or the gateway drains.

    The client then has a shorter body than Content-Length said.
    """

    def __init__(
        self,
        connections: Connections,
        reading: AsyncGenerator[bytes],
        first: bytes,
        status: int,
        headers: dict[str, str],
        info: ObjectInfo,
    ) -> None:
        super().__init__(None, status, headers, info.media_type)
        self._connections = connections
        self._reading = reading
        self._first = first
        self._info = info
        self._over = asyncio.Event()
        self._whole = False

    @property
    def sessions(self) -> int:
        """It carries no events."""
        return 0

    async def drain(self) -> None:
        self._over.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._reading):
            with self._connections.holding(self, "artifact"):
                if self._connections.draining:
                    self._over.set()
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                async with asyncio.TaskGroup() as tasks:
                    parts = [tasks.create_task(self._forward(send)), tasks.create_task(self._watch(receive))]
                    await self._over.wait()
                    for part in parts:
                        part.cancel()
                if not self._whole and scope["http_version"] == "2":
                    await _end_stream(send)

    async def _forward(self, send: Send) -> None:
        try:
            await self._send(send, self._first)
            async for data in self._reading:
                await self._send(send, data)
            self._whole = True
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            _log.info("download cut", artifact=self._info.name, reason="the client does not read")
        except StoreUnavailable as exc:
            _log.warning("download cut", artifact=self._info.name, reason=exc.message)
        finally:
            self._over.set()

    async def _send(self, send: Send, data: bytes) -> None:
        """Returns when the client's socket has taken it."""
        async with asyncio.timeout(TAKEN_WITHIN_S):
            await send({"type": "http.response.body", "body": data, "more_body": True})

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            continue
        self._over.set()


async def _end_stream(send: Send) -> None:
    """With HTTP/1.1 Hypercorn hangs up on a client that has less than it was promised; with HTTP/2 the connection is
    for others too, and nobody would tell the client that its stream is over."""
    try:
        async with asyncio.timeout(GOODBYE_S):
            await send({"type": "http.response.body", "body": b"", "more_body": False})
    except TimeoutError:
        return


def _part(request: Request, size: int, etag: str) -> Span | None:
    if request.method != "GET" or not range_holds(request.headers.get("if-range"), etag):
        return None
    try:
        return span(request.headers.get("range"), size)
    except Unsatisfiable as exc:
        raise HTTPException(416, headers={"Content-Range": f"bytes */{size}"}) from exc


def _headers(info: ObjectInfo, etag: str, name: str) -> dict[str, str]:
    digest = base64.b64encode(bytes.fromhex(info.sha256)).decode()
    suffix = SUFFIXES.get(info.media_type.partition(";")[0], "bin")
    return {
        "ETag": etag,
        "Repr-Digest": f"sha-256=:{digest}:",
        "Accept-Ranges": "bytes",
        # A browser may keep a copy, and has to ask each time whether it may still show it.
        "Cache-Control": "private, no-cache",
        # A tool wrote it, and so whoever told the tool what to write: a browser saves it and shows nothing of it.
        "Content-Disposition": f'attachment; filename="{name}.{suffix}"',
        "X-Content-Type-Options": "nosniff",
    }
