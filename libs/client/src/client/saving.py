"""Artifacts into files: whole and checked, or not at all."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from client.arguments import BadArgument
from client.event import JobResult
from client.session import Session
from client.terminal import complain, console

STDOUT: Final = "-"
SIDE_STREAM: Final = "stderr"


class File:
    """What is written to it is another file beside it until all is there: nobody ever sees a part of it."""

    def __init__(self, path: Path, force: bool) -> None:
        """
        Raises:
            BadArgument: if nothing can be saved there.
        """
        self.name = str(path)
        self._path = path
        self._force = force
        if path.exists() and not force:
            raise self._exists()
        if path.is_dir() or not path.parent.is_dir():
            raise BadArgument(f"--save {path}: {'a directory' if path.is_dir() else 'its directory does not exist'}")

    @contextmanager
    def writing(self) -> Iterator[BinaryIO]:
        part = self._path.with_name(f".{self._path.name[:200]}.{secrets.token_hex(4)}.part")
        try:
            with part.open("xb") as file:
                yield file
            self._become(part)
        except OSError as exc:
            raise BadArgument(f"--save {self.name}: {exc.strerror}") from exc
        finally:
            part.unlink(missing_ok=True)

    def _become(self, part: Path) -> None:
        if self._force:
            part.replace(self._path)
            return
        try:
            os.link(part, self._path)  # unlike a rename it does not replace what somebody put there meanwhile
        except FileExistsError as exc:
            raise self._exists() from exc
        except OSError:
            part.rename(self._path)  # a file system without links

    def _exists(self) -> BadArgument:
        return BadArgument(f"--save {self.name}: the file exists; --force replaces it")


class Stdout:
    name = "stdout"

    @contextmanager
    def writing(self) -> Iterator[BinaryIO]:
        sys.stdout.flush()
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()


Target = File | Stdout


def target(name: str, *, force: bool) -> Target:
    """Where `--save` says.

    Raises:
        BadArgument: if nothing can be saved there.
    """
    return Stdout() if name == STDOUT else File(Path(name), force)


def offered(result: JobResult) -> list[str]:
    """The streams that can be downloaded."""
    return [name for name, told in result.output.items() if "artifact" in told]


async def save_output(session: Session, result: JobResult, to: Target) -> bool:
    """Save the output of a job that has ended. False if it has none to be had."""
    if not [name for name in offered(result) if name != SIDE_STREAM]:
        complain(f"nothing was saved to {to.name}: the job offers no output")
        return False
    await save(session, result.job, to)
    return True


async def save(session: Session, job: str, to: Target, *, stderr: bool = False) -> None:
    """Download a job's artifact, with a bar on a terminal.

    Raises:
        ClientError: as `Session.artifact`.
        BadArgument: if it cannot be written.
    """
    async with session.artifact(job, stderr=stderr) as artifact:
        with to.writing() as file, _progress(to.name, artifact.size) as bar:
            async for piece in artifact:
                file.write(piece)
                bar.advance(bar.task_ids[0], len(piece))
    print(f"saved {artifact.size:,} bytes to {to.name}, SHA-256 {artifact.sha256}", file=sys.stderr, flush=True)


@contextmanager
def _progress(name: str, size: int) -> Iterator[Progress]:
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console(stderr=True),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    bar.add_task(name, total=size)
    if bar.console.is_terminal:
        bar.start()
    try:
        yield bar
    finally:
        if bar.console.is_terminal:  # elsewhere rich would end a line that was never begun
            bar.stop()
