"""Downloads of artifacts over HTTP, which go on at another gateway where one breaks off, and are checked."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from itertools import cycle
from typing import Final

import httpx

from client.endpoint import http_address
from client.errors import ConnectionLost, Damaged, ProtocolFault
from client.http import http_client, refused
from client.patience import Patience

_DIGEST: Final = re.compile(r"sha-256=:([A-Za-z0-9+/=]+):")
_PASSING: Final = (429, 502, 503, 504)
"""Statuses after which the same request may succeed, here or at another gateway."""

_log = logging.getLogger("client")


class _Broken(Exception):
    """This answer is of no use, and another one may be."""


_FAULTS: Final = (httpx.TransportError, _Broken)


class Artifact:
    """Made by `Session.artifact`. Iterate it once: the pieces together are the artifact."""

    def __init__(self, http: httpx.AsyncClient, addresses: Sequence[str], patience_s: float) -> None:
        self.size = 0
        """In bytes."""
        self.sha256 = ""
        """In hex."""
        self.media_type = ""
        self._http = http
        self._addresses = cycle(addresses)
        self._patience_s = patience_s
        self._patience = Patience(patience_s)
        self._etag = ""
        self._got = 0
        self._digest = hashlib.sha256()
        self._answer: httpx.Response | None = None

    async def begin(self) -> None:
        """Find out what there is, and have it sent."""
        while self._answer is None:
            try:
                self._answer = await self._ask()
            except _FAULTS as exc:
                await self._wait(exc)

    async def close(self) -> None:
        if self._answer is not None:
            await self._answer.aclose()

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        while self._got < self.size:
            await self.begin()
            try:
                async with aclosing(self._rest()) as pieces:
                    async for piece in pieces:
                        yield piece
            except _FAULTS as exc:
                await self._wait(exc)
            finally:
                await self.close()
                self._answer = None
        if self._digest.hexdigest() != self.sha256:
            raise Damaged(f"the artifact has another SHA-256 than the gateway announced, {self.sha256}: load it again")

    async def _rest(self) -> AsyncGenerator[bytes]:
        """What the answer has and is new."""
        assert self._answer is not None
        known = 0 if self._answer.status_code == 206 else self._got  # a proxy may know no ranges
        async for data in self._answer.aiter_raw():
            piece = data[known:]
            known -= len(data) - len(piece)
            if self._got + len(piece) > self.size:
                raise Damaged(f"the gateway sends more than the {self.size} bytes that it had announced")
            if piece:
                self._patience = Patience(self._patience_s)  # it comes forward
                self._got += len(piece)
                self._digest.update(piece)
                yield piece
        if self._got < self.size:
            raise _Broken("the answer ended too early")

    async def _ask(self) -> httpx.Response:
        """An answer with the bytes that are missing.

        Raises:
            httpx.TransportError, _Broken: if it may be had elsewhere or later.
            Refused, ProtocolFault, Damaged: if not.
        """
        headers = {"Range": f"bytes={self._got}-", "If-Range": self._etag} if self._got else {}
        address = next(self._addresses)
        answer = await self._http.send(self._http.build_request("GET", address, headers=headers), stream=True)
        try:
            if answer.status_code in _PASSING:
                raise _Broken(f"{address} answered {answer.status_code}")
            if answer.status_code not in (200, 206):
                raise await refused(answer)
            self._know(answer)
        except BaseException:
            await answer.aclose()
            raise
        return answer

    def _know(self, answer: httpx.Response) -> None:
        found = _DIGEST.search(answer.headers.get("repr-digest", ""))
        if not found:
            raise ProtocolFault("the gateway sent an artifact without its digest")
        sha256 = base64.b64decode(found[1]).hex()
        if self._got and sha256 != self.sha256:
            raise Damaged("the artifact is another one than at the beginning of the download: load it again")
        if answer.status_code == 200:
            self.size = _size(answer)
        self.sha256, self._etag = sha256, answer.headers.get("etag", "")
        self.media_type = answer.headers.get("content-type", "application/octet-stream")

    async def _wait(self, reason: Exception) -> None:
        said = str(reason) or type(reason).__name__
        delay_s = self._patience.failed()
        if delay_s is None:
            raise ConnectionLost(
                f"the download broke off at byte {self._got} and did not go on within {self._patience_s:g} s: {said}"
            )
        _log.info("download: %s; trying again in %.1f s", said, delay_s)
        await asyncio.sleep(delay_s)


@asynccontextmanager
async def open_artifact(urls: Sequence[str], key: str, path: str, patience_s: float) -> AsyncIterator[Artifact]:
    """The artifact at `path` of the gateways whose WebSocket addresses are `urls`, its size known already.

    Raises:
        As `Session.artifact`.
    """
    async with http_client(urls, key) as http:
        artifact = Artifact(http, [http_address(url) + path for url in urls], patience_s)
        try:
            await artifact.begin()
            yield artifact
        finally:
            await artifact.close()


def _size(answer: httpx.Response) -> int:
    size = answer.headers.get("content-length", "")
    if not size.isdigit():
        raise ProtocolFault("the gateway sent an artifact without its size")
    return int(size)
