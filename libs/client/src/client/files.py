"""Files of a session's container on one server: brought to its tools, taken home, listed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any
from urllib.parse import quote

from client.collected import Attempts
from client.endpoint import http_address
from client.errors import ConnectionLost, Damaged, JobFailed
from client.event import Event, JobResult

Ask = Callable[..., Awaitable[dict[str, Any]]]
Follow = Callable[[str], AsyncGenerator[Event, None]]


class Files:
    """Made by `Session.files`. Paths are relative to the container's files directory, `/files` there.

    Every method raises `Refused` where it is not accepted, `JobFailed` where its job does not succeed, and
    `ConnectionLost` as calls do.
    """

    def __init__(self, ask: Ask, follow: Follow, urls: Sequence[str], key: str, session: str, server: str) -> None:
        self._ask = ask
        self._follow = follow
        self._urls = urls
        self._key = key
        self._session = session
        self._server = server

    async def put(self, path: str, content: bytes | AsyncIterable[bytes]) -> dict[str, Any]:
        """Bring a file; folders on the way are made. Returns `{path, size, sha256}`.

        A file that is there already is replaced. The content is sent once: a connection that is lost meanwhile is an
        error, and nothing was put then, unless `sent` says that it may have been.
        """
        job = await self._upload(path, content)
        return (await self._end(job)).structured

    async def get(self, path: str) -> AsyncGenerator[bytes, None]:
        """The content of a file, in pieces.

        Raises:
            Damaged: if a part of it is lost, or the attempt that read it was repeated after a part had been yielded.
        """
        job = str((await self._ask("files/get", session=self._session, server=self._server, path=path))["job"])
        attempts, size = Attempts(), 0
        async with aclosing(self._follow(job)) as events:
            async for event in events:
                if attempts.begins_anew(event) and size:
                    raise Damaged(f"{path}: the container was lost while it was read: get it again")
                if event.type == "output" and event.data.get("stream") == "file":
                    if event.data["offset"] != size or event.data.get("lost"):
                        raise Damaged(f"{path}: a part of it is not stored any more: get it again")
                    size += len(event.output_bytes)
                    yield event.output_bytes
                elif event.terminal:
                    _succeeded(JobResult.from_event(event))

    async def list(self, path: str | None = None) -> dict[str, Any]:
        """`{path, entries: [{name, type, size, mtime_ms, target?}], truncated}` of a folder, or of all there is."""
        params = {"session": self._session, "server": self._server} | ({} if path is None else {"path": path})
        return (await self._end(str((await self._ask("files/list", **params))["job"]))).structured

    async def _upload(self, path: str, content: bytes | AsyncIterable[bytes]) -> str:
        import httpx  # takes longer to import than all the rest

        from client.http import http_client, refused

        where = f"/v1/sessions/{self._session}/servers/{quote(self._server)}/files/{quote(path)}"
        async with http_client(self._urls, self._key) as http:
            request = http.build_request("PUT", http_address(self._urls[0]) + where, content=content)
            try:
                answer = await http.send(request, stream=True)
            except httpx.ConnectError as exc:
                raise ConnectionLost(f"the file was not sent: {exc}") from exc
            except httpx.TransportError as exc:
                raise ConnectionLost(f"the connection broke off while the file was sent: {exc}", sent=True) from exc
            try:
                if answer.status_code != 202:
                    raise await refused(answer)
                await answer.aread()
            finally:
                await answer.aclose()
        return str(answer.json()["job"])

    async def _end(self, job: str) -> JobResult:
        async with aclosing(self._follow(job)) as events:
            async for event in events:
                if event.terminal:
                    return _succeeded(JobResult.from_event(event))
        raise AssertionError("the events of a job end with its terminal event")


def _succeeded(result: JobResult) -> JobResult:
    if not result.succeeded:
        raise JobFailed(result.job, result.outcome, result.error or {})
    return result
