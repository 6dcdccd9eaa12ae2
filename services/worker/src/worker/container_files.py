"""The files directory of one container, through a window of its own.

A window is a container that never runs and has nothing in it but the files directory, so that whatever a tool does with
symlinks meanwhile, bytes come from that directory and go there, or nowhere (docs/adr/0016). A symlink that stands on
the way is refused all the same: where it leads in the tool's container is not where it leads here.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from itertools import accumulate

from common.job_errors import JobError
from common.log import get
from worker.engine import FILES_DIR, ContainerEngine, PathStat
from worker.errors import EngineUnavailable, ServerGone
from worker.files_errors import FileChanged, FilesUnavailable, NoSuchFile, NotAFolder
from worker.tar_stream import TarEntry, TarFault, TarReader, file_tar

_log = get(__name__)


@dataclass(frozen=True)
class Place:
    """Where a file is, or could be: nothing on the way there is a symlink."""

    folder: str
    """The deepest folder on the way that exists, as an absolute path."""
    missing: Sequence[str]
    """Names of the folders below it that do not."""
    name: str

    @property
    def path(self) -> str:
        return "/".join([self.folder, *self.missing, self.name])


class ContainerFiles:
    """Made by `opened()`."""

    def __init__(self, engine: ContainerEngine, window: str) -> None:
        self._engine = engine
        self._window = window

    async def place(self, parts: Sequence[str]) -> Place:
        """Where the file with this path is, or could be.

        Raises:
            NotAFolder: if something on the way is none; a symlink to one is none.
        """
        *parents, name = parts
        folder, missing = await self._folders(parents)
        return Place(folder, missing, name)

    async def folder(self, parts: Sequence[str]) -> str | None:
        """The absolute path of a folder; None if there is nothing. Raises as `place` does."""
        folder, missing = await self._folders(parts)
        return None if missing else folder

    async def _folders(self, parts: Sequence[str]) -> tuple[str, Sequence[str]]:
        """The deepest of these folders that exists, and the names of the others."""
        paths = list(accumulate(parts, "{}/{}".format, initial=FILES_DIR))
        for at, path in enumerate(paths[1:]):
            found = await self._engine.stat(self._window, path)
            if found is None:
                return paths[at], parts[at:]
            if found.kind != "folder":
                raise NotAFolder("/".join(parts[: at + 1]), found.kind, found.target)
        return paths[-1], []

    async def stat(self, place: Place) -> PathStat | None:
        return None if place.missing else await self._engine.stat(self._window, place.path)

    async def unpack(self, place: Place, size: int, content: AsyncIterable[bytes]) -> None:
        """Write the file, and the folders that are missing. What fails may leave a part of it.

        Raises:
            NoSpace, FileChanged, and what `content` raises
        """
        folders = list(accumulate(place.missing, "{}/{}".format))
        name = "/".join([*place.missing, place.name])
        async with aclosing(file_tar(name, size, content, int(time.time()), folders=folders)) as tar:
            try:
                await self._engine.put_archive(self._window, place.folder, tar)
            except (NoSuchFile, FilesUnavailable) as exc:
                raise FileChanged(place.path) from exc  # the folder was there, and inside, when it was looked at

    async def pack(self, path: str) -> AsyncGenerator[TarEntry | bytes]:
        """A file, or a folder with all in it: entries, each followed by its content in pieces of at most 128 KiB.

        Raises:
            FileChanged: if the tool was at work there, so that the engine broke off.
        """
        reader = TarReader()
        try:
            async with aclosing(self._engine.get_archive(self._window, path)) as pieces:
                async for piece in pieces:
                    for item in reader.feed(piece):
                        yield item
            reader.close()
        except (TarFault, NoSuchFile) as exc:
            raise FileChanged(path) from exc


@asynccontextmanager
async def opened(engine: ContainerEngine, container: str) -> AsyncIterator[ContainerFiles]:
    """The files of a running container, for one transfer. When the context is left nothing of it goes on.

    Raises:
        FilesUnavailable: if it has no files directory.
        ServerGone: if it does not run, also if it ended meanwhile: what was put into it is gone then.
        EngineUnavailable
    """
    window = await engine.open_window(container)
    try:
        try:
            yield ContainerFiles(engine, window)
        except JobError as exc:
            await _require_running(engine, container, exc)  # of one that has ended the files are gone, not missing
            raise
        await _require_running(engine, container, None)
    finally:
        try:
            await engine.remove(window)
        except (EngineUnavailable, TimeoutError) as exc:
            # It has this worker's label: who removes the worker's containers removes it too.
            _log.warning("window not removed", window=window[:12], container=container[:12], why=str(exc))


async def _require_running(engine: ContainerEngine, container: str, cause: JobError | None) -> None:
    state = await engine.inspect(container)
    if state is None or not state.running:
        raise ServerGone("the container has ended") from cause
