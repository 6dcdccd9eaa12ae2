"""The Docker Engine's archive endpoint as streams: files into a container, files out of it.

aiodocker's own methods hold an archive in memory as a whole. Facts that shaped this (dockerd 20.10, each measured):
it sees volumes, not `Tmpfs` mounts; while an archive is under way the container is locked, so that inspect and remove
wait for its end; it follows symlinks, within the container; a body that breaks off leaves what was unpacked so far; a
HEAD that fails has no body. Hence the windows (docs/adr/0016).
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import AbstractAsyncContextManager, suppress
from datetime import datetime
from typing import Any

import aiohttp
from aiodocker import Docker
from aiodocker.exceptions import DockerError

from common.errors import ServiceError
from worker.docker_errors import translated
from worker.engine import FILES_DIR, PathKind, PathStat
from worker.errors import ServerGone
from worker.files_errors import FileChanged, FilesUnavailable, InvalidPath, NoSpace, NoSuchFile
from worker.tar_stream import END

PIECE_BYTES = 128 * 1024
PIECE_TIMEOUT_S = 30.0
"""How long an archive may stand still."""
EMPTY_IMAGE = "mcp-orchestrator/empty:local"
"""Has no file at all; made where it is missing."""
WINDOW_LABEL = "mcp-orchestrator.files-of"
_LABELS = "mcp-orchestrator."
_ERROR_BYTES = 64 * 1024
_MESSAGE_CHARS = 500

_QUESTION = aiohttp.ClientTimeout(total=60.0, sock_connect=5.0)
_DOWNLOAD = aiohttp.ClientTimeout(sock_connect=5.0, sock_read=PIECE_TIMEOUT_S)
"""Does not run while nobody takes what has come."""
_UPLOAD = aiohttp.ClientTimeout(sock_connect=5.0)
"""The rest of its deadline is `put_archive`'s own: the client has none for a body that is not taken."""

# Go's os.FileMode, in which the engine tells what stands at a path.
_MODE_FOLDER = 1 << 31
_MODE_SYMLINK = 1 << 27
_MODE_OTHER = 1 << 26 | 1 << 25 | 1 << 24 | 1 << 21 | 1 << 19
"""Device, named pipe, socket, character device, irregular."""


async def open_window(docker: Docker, container: str) -> str:
    with translated("opening a window to a container's files"):
        try:
            found = await docker.containers.container(container).show()
        except DockerError as exc:
            raise _gone_or(exc) from exc
        if not found["State"]["Running"]:
            raise ServerGone("the container does not run")
        if not any(mount["Destination"] == FILES_DIR for mount in found["Mounts"]):
            raise FilesUnavailable
        ours = {name: value for name, value in found["Config"]["Labels"].items() if name.startswith(_LABELS)}
        config: dict[str, Any] = {
            "Image": EMPTY_IMAGE,
            "Cmd": ["never-runs"],
            "Labels": {**ours, WINDOW_LABEL: container[:12]},
            # By its container and not by its name: whichever of the two is removed last then takes the volume along.
            "HostConfig": {"VolumesFrom": [container], "NetworkMode": "none", "ReadonlyRootfs": True},
        }
        try:
            return str((await docker.containers.create(config)).id)
        except DockerError as exc:
            if "no such image" not in exc.message.lower():
                raise _gone_or(exc) from exc
        await _import_empty_image(docker)
        try:
            return str((await docker.containers.create(config)).id)
        except DockerError as exc:
            raise _gone_or(exc) from exc


async def _import_empty_image(docker: Docker) -> None:
    repository, tag = EMPTY_IMAGE.rsplit(":", 1)
    params = {"fromSrc": "-", "repo": repository, "tag": tag}
    headers = {"Content-Type": "application/x-tar"}
    async with docker._query("images/create", "POST", params=params, data=END, headers=headers) as response:
        await response.read()


async def stat(docker: Docker, container: str, path: str) -> PathStat | None:
    with translated("looking at a path"):
        async with _request(docker, "HEAD", container, path, _QUESTION) as response:
            if response.status == 200:
                told = response.headers["X-Docker-Container-Path-Stat"]
                return _path_stat(json.loads(base64.b64decode(told)))
        # Only a body says why, and only a GET has one.
        async with _request(docker, "GET", container, path, _QUESTION) as response:
            if response.status == 200:
                raise FileChanged(path)
            refusal = await _refusal(response, path)
        if isinstance(refusal, NoSuchFile):
            return None
        if isinstance(refusal, DockerError) and "too many links" in refusal.message:
            return PathStat("symlink", 0, 0)  # it leads to itself
        raise refusal


async def put_archive(docker: Docker, container: str, folder: str, tar: AsyncIterable[bytes]) -> None:
    """`tar` is read here and not by the HTTP client, whose writing outlives a request that is given up."""
    feed = _Feed()
    failure: ServiceError | None = None
    async with asyncio.TaskGroup() as tasks:
        feeding = tasks.create_task(feed.run(tar))
        try:
            await _unpack(docker, container, folder, feed)
        except ServiceError as exc:
            failure = exc
        feeding.cancel()
    if broken := feed.failure or failure:
        raise broken


async def _unpack(docker: Docker, container: str, folder: str, feed: _Feed) -> None:
    with translated("unpacking an archive"):
        async with (
            asyncio.timeout(PIECE_TIMEOUT_S) as deadline,
            _request(docker, "PUT", container, folder, _UPLOAD, feed.body(deadline)) as response,
        ):
            if response.status != 200:
                raise await _refusal(response, folder)


class _Feed:
    """The pieces of an archive on their way to the HTTP client: one at a time."""

    def __init__(self) -> None:
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        self.failure: ServiceError | None = None
        """Why there are no more pieces, although the archive is not complete."""

    async def run(self, tar: AsyncIterable[bytes]) -> None:
        try:
            async for piece in tar:
                await self._pieces.put(piece)
        except ServiceError as exc:
            self.failure = exc
        await self._pieces.put(None)

    async def body(self, deadline: asyncio.Timeout) -> AsyncIterator[bytes]:
        """Each piece puts the deadline off."""
        loop = asyncio.get_running_loop()
        while (piece := await self._pieces.get()) is not None:
            deadline.reschedule(loop.time() + PIECE_TIMEOUT_S)
            yield piece


async def get_archive(docker: Docker, container: str, path: str) -> AsyncGenerator[bytes]:
    with translated("packing an archive"):
        async with _request(docker, "GET", container, path, _DOWNLOAD) as response:
            if response.status != 200:
                raise await _refusal(response, path)
            while piece := await response.content.read(PIECE_BYTES):
                yield piece


def _request(
    docker: Docker,
    verb: str,
    container: str,
    path: str,
    timeout: aiohttp.ClientTimeout,
    body: AsyncIterable[bytes] | None = None,
) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
    return docker.session.request(
        verb,
        docker._canonicalize_url(f"containers/{container}/archive"),
        params={"path": path} if body is None else {"path": path, "noOverwriteDirNonDir": "1"},
        data=body,
        # Where it may, the engine compresses: one core for 200 MB in a second.
        headers={"Accept-Encoding": "identity", "Content-Type": "application/x-tar"},
        timeout=timeout,
    )


async def _refusal(response: aiohttp.ClientResponse, path: str) -> Exception:
    """What an answer other than 200 means."""
    said = b""
    while len(said) < _ERROR_BYTES and (piece := await response.content.read(_ERROR_BYTES - len(said))):
        said += piece
    text = said.decode(errors="replace")
    with suppress(ValueError, KeyError, TypeError):  # not the engine's JSON, but a proxy's page, say
        text = str(json.loads(text)["message"])
    failure = _gone_or(DockerError(response.status, text[:_MESSAGE_CHARS]))
    if isinstance(failure, ServerGone):
        return failure
    if response.status == 404:
        return NoSuchFile(path)
    if "file name too long" in text:
        return InvalidPath(path, "it is too long for the engine, which puts a path of its own before it")
    if "not a directory" in text:
        return NoSuchFile(path)
    if any(said in text for said in ("cannot overwrite", "no such file or directory", "readlink")):
        return FileChanged(path)
    if "no space left on device" in text:
        return NoSpace(path)
    if "read-only" in text:
        return FilesUnavailable()
    return failure


def _gone_or(failure: DockerError) -> Exception:
    """What is missing is a container, or `failure` is something else."""
    return ServerGone("its container was removed") if "no such container" in failure.message.lower() else failure


def _path_stat(told: dict[str, Any]) -> PathStat:
    mode = int(told["mode"])
    kind: PathKind = "file"
    if mode & _MODE_FOLDER:
        kind = "folder"
    elif mode & _MODE_SYMLINK:
        kind = "symlink"
    elif mode & _MODE_OTHER:
        kind = "other"
    return PathStat(kind, int(told["size"]), _mtime_ms(told["mtime"]), told["linkTarget"])


def _mtime_ms(told: str) -> int:
    try:
        return int(datetime.fromisoformat(told).timestamp() * 1000)
    except ValueError:
        return 0  # before the year 1: a tool may set what it likes
