"""Files of a leased container: put, get and list, through the engine (docs/adr/0016)."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from functools import partial
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.errors import ServiceError
from common.file_path import PathFault, parts_of
from common.job_errors import JobError
from common.schema import Job
from worker.container import ToolContainer
from worker.container_files import ContainerFiles, Place, opened
from worker.engine import ContainerEngine
from worker.errors import ServerGone
from worker.executors.files_listing import Listing
from worker.files_errors import (
    ContentMismatch,
    FileChanged,
    FileTooLarge,
    InvalidFilesCall,
    InvalidPath,
    NoSpace,
    NoSuchFile,
    NotAFile,
    UploadUnavailable,
)
from worker.tar_stream import TarEntry

STOP_GRACE_S = 20.0
"""Longer than it takes to clear a place and to close a window."""
LIST_TRIES = 3
"""A tool that shortens files while their folder is being read makes the engine break off."""


class Uploads(Protocol):
    def read(self, object_name: str) -> AsyncGenerator[bytes]:
        """The bytes of an uploaded object, in pieces; never waits for ever.

        Raises:
            ServiceError: if they cannot be read, or not to the end.
        """

    async def remove(self, object_name: str) -> None:
        """Nobody needs the object any more.

        Raises:
            ServiceError: if it is left to expire.
        """


class FileOutput(Protocol):
    async def output(self, name: Literal["file"], data: bytes) -> None:
        """Take a piece; waits while it cannot be kept."""


class _Arguments(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Put(_Arguments):
    path: str
    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    object: str


class _Get(_Arguments):
    path: str


class _List(_Arguments):
    path: str | None = None


class FilesCall:
    """One transfer. `follow()` must run, as `task`."""

    task: asyncio.Task[None]

    def __init__(self, work: Callable[[], Awaitable[dict[str, Any]]]) -> None:
        self._work = work
        self.answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.answer.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def follow(self) -> None:
        """Resolves `answer` at the end of the transfer."""
        try:
            result = await self._work()
        except JobError as exc:
            self._fail(exc)
        except asyncio.CancelledError:
            self._fail(ServerGone("the transfer was stopped"))
            raise
        else:
            if not self.answer.done():
                self.answer.set_result(result)

    def _fail(self, failure: JobError) -> None:
        if not self.answer.done():
            self.answer.set_exception(failure)

    async def stop(self) -> bool:
        """The engine has let go of the files when the window is closed, which ends the task."""
        self.task.cancel()
        await asyncio.wait({self.task}, timeout=STOP_GRACE_S)
        self._fail(ServerGone("the transfer was stopped"))  # also if it had not begun
        return self.task.done()


class FilesExecutor:
    """For the containers of one server: their files directories have `files_mb`, a file at most `max_file_bytes`."""

    def __init__(
        self, engine: ContainerEngine, tasks: asyncio.TaskGroup, uploads: Uploads, *, files_mb: int, max_file_bytes: int
    ) -> None:
        self._engine = engine
        self._tasks = tasks
        self._uploads = uploads
        self._directory_bytes = files_mb * 1024 * 1024
        self._max_file_bytes = max_file_bytes

    async def begin(self, container: ToolContainer, job: Job, outbox: FileOutput) -> FilesCall:
        """As the contract has it: nothing has happened to the files if it raises."""
        state = await self._engine.inspect(container.id)
        if state is None or not state.running or container.connection.ended:
            # After a restart of the engine the container may run on, but its files are out of the engine's sight.
            raise ServerGone("the container has ended")
        call = FilesCall(partial(self._transfer, container.id, job, outbox))
        call.task = self._tasks.create_task(call.follow())
        return call

    async def _transfer(self, container: str, job: Job, outbox: FileOutput) -> dict[str, Any]:
        try:
            match job.tool:
                case "put":
                    said, told = await self._put(container, _Put.model_validate(job.arguments))
                case "get":
                    said, told = await self._get(container, _Get.model_validate(job.arguments), outbox)
                case "list":
                    said, told = await self._list(container, _List.model_validate(job.arguments))
                case _:
                    raise InvalidFilesCall(f"{job.tool!r}")
        except ValidationError as exc:
            faults = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in exc.errors())
            raise InvalidFilesCall(f"{job.tool!r} with {faults}") from exc
        except FileChanged as exc:
            raise FileChanged(_asked(job)) from exc  # by the path that was asked for, and not the engine's
        except InvalidPath as exc:
            raise InvalidPath(_asked(job), exc.data["rule"]) from exc
        return {"content": [{"type": "text", "text": said}], "structuredContent": told, "isError": False}

    async def _put(self, container: str, wanted: _Put) -> tuple[str, dict[str, Any]]:
        parts = _parts(wanted.path)
        if wanted.size > self._max_file_bytes:
            raise FileTooLarge(wanted.path, wanted.size, self._max_file_bytes)
        if wanted.size > self._directory_bytes:
            raise NoSpace(wanted.path, wanted.size, self._directory_bytes)
        async with aclosing(_verified(wanted, self._uploads)) as content:
            # Before the container is touched: an upload that cannot be read costs no file that is there.
            first = await anext(content, b"")
            place: Place | None = None
            try:
                async with opened(self._engine, container) as files, aclosing(_chain(first, content)) as pieces:
                    place = await _free_place(files, parts, wanted.path)
                    await files.unpack(place, wanted.size, pieces)
            except FileChanged:
                raise  # what stands there now is the tool's
            except BaseException as exc:
                if place is not None:
                    await self._clear(container, place)
                if isinstance(exc, NoSpace):
                    raise NoSpace(wanted.path, wanted.size, self._directory_bytes) from exc
                raise
        with suppress(ServiceError):
            await self._uploads.remove(wanted.object)
        return f"{wanted.path}: {wanted.size} bytes", wanted.model_dump(include={"path", "size", "sha256"})

    async def _clear(self, container: str, place: Place) -> None:
        """Leave an empty file in the place of one that was unpacked in part: there is no way to remove one, but its
        space is free again.

        Through a window of its own: until the other one is closed, the engine may still unpack what it has of an
        archive that was broken off (measured: 5 times in 25).
        """
        with suppress(JobError):
            async with opened(self._engine, container) as files:
                await files.unpack(place, 0, _nothing())

    async def _get(self, container: str, wanted: _Get, outbox: FileOutput) -> tuple[str, dict[str, Any]]:
        parts = _parts(wanted.path)
        async with opened(self._engine, container) as files:
            place = await files.place(parts)
            found = await files.stat(place)
            if found is None:
                raise NoSuchFile(wanted.path)
            if found.kind != "file":
                raise NotAFile(wanted.path, found.kind, found.target)
            if found.size > self._max_file_bytes:
                raise FileTooLarge(wanted.path, found.size, self._max_file_bytes)
            packed: TarEntry | None = None
            async with aclosing(files.pack(place.path)) as items:
                async for item in items:
                    if isinstance(item, bytes):
                        await outbox.output("file", item)
                        continue
                    packed = item
                    if item.type != "file" or item.size > self._max_file_bytes:
                        raise FileChanged(wanted.path)  # since it was looked at
            if packed is None:
                raise FileChanged(wanted.path)
        told = {"path": wanted.path, "size": packed.size, "mtime_ms": found.mtime_ms}
        return f"{wanted.path}: {packed.size} bytes", told

    async def _list(self, container: str, wanted: _List) -> tuple[str, dict[str, Any]]:
        path = wanted.path or ""
        parts = _parts(path) if wanted.path is not None else []
        async with opened(self._engine, container) as files:
            for _ in range(LIST_TRIES - 1):
                with suppress(FileChanged):
                    listing = await self._listed(files, path, parts)
                    break
            else:
                listing = await self._listed(files, path, parts)
        count = f"{len(listing.entries)} entries{', and more' if listing.truncated else ''}"
        told = {"path": path, "entries": listing.entries, "truncated": listing.truncated}
        return f"{path or 'the files directory'}: {count}", told

    async def _listed(self, files: ContainerFiles, path: str, parts: list[str]) -> Listing:
        # A file with holes has more content than the directory has space; all others fit.
        listing = Listing(path, self._directory_bytes)
        folder = await files.folder(parts)
        if folder is None:
            raise NoSuchFile(path)
        async with aclosing(files.pack(folder)) as items:
            async for item in items:
                listing.take(item)
                if listing.truncated:
                    break
        return listing


def _asked(job: Job) -> str:
    return job.arguments.get("path") or ""


def _parts(path: str) -> list[str]:
    try:
        return parts_of(path)
    except PathFault as exc:
        raise InvalidPath(path, str(exc)) from exc


async def _free_place(files: ContainerFiles, parts: list[str], path: str) -> Place:
    """Where a file can be put: nothing is there, or a file, or a symlink, whose place it takes."""
    place = await files.place(parts)
    found = await files.stat(place)
    if found is not None and found.kind in ("folder", "other"):
        raise NotAFile(path, found.kind)
    return place


async def _verified(wanted: _Put, uploads: Uploads) -> AsyncGenerator[bytes]:
    """The upload's bytes, the last piece only when all of them are the announced ones.

    Raises:
        ContentMismatch, UploadUnavailable
    """
    digest, size, held = hashlib.sha256(), 0, b""
    try:
        async with aclosing(uploads.read(wanted.object)) as pieces:
            async for piece in pieces:
                size += len(piece)
                if size > wanted.size:
                    break
                digest.update(piece)
                if held:
                    yield held
                held = piece
    except JobError:
        raise
    except ServiceError as exc:
        raise UploadUnavailable(exc.message) from exc
    if size != wanted.size:
        found = size if size < wanted.size else f"{size} or more"
        raise ContentMismatch(wanted.path, "size", wanted.size, found)
    if digest.hexdigest() != wanted.sha256:
        raise ContentMismatch(wanted.path, "sha256", wanted.sha256, digest.hexdigest())
    if held:
        yield held


async def _chain(first: bytes, others: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    yield first
    async for piece in others:
        yield piece


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""
