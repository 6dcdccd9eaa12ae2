"""What the worker asks of a container engine, in the smallest form that it can be asked.

Only calls of the Docker API 1.41, so that Podman's service can stand in for Docker's. Every method has its
own deadline inside; none waits for ever.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from common.catalog import ContainerLimits

STDOUT = 1
STDERR = 2

UNPRIVILEGED = "65534:65534"

FILES_DIR = "/files"
"""Where a container's files directory is. Besides /tmp the only place that it can write to."""
MAX_FILES = 16_384
"""Files, folders and links that a files directory can hold."""


@dataclass(frozen=True)
class ContainerSpec:
    """A container to make. Hardened whatever stands here: no capability, read-only root, no new privileges."""

    image: str
    command: Sequence[str] | None
    env: Mapping[str, str]
    labels: Mapping[str, str]
    limits: ContainerLimits
    network: str = "none"
    runtime: str | None = None
    user: str = UNPRIVILEGED
    files_mb: int | None = None
    """Size of its files directory, in memory; None: it has none."""


class Frame(NamedTuple):
    """A piece of output, cut anywhere: at most 32 KiB."""

    stream: int
    data: bytes


@dataclass(frozen=True)
class ContainerState:
    running: bool
    exit_code: int | None
    oom_killed: bool


@dataclass(frozen=True)
class ContainerInfo:
    id: str
    running: bool
    labels: Mapping[str, str] = field(default_factory=dict)
    created_s: float = 0.0
    """Unix time."""


PathKind = Literal["file", "folder", "symlink", "other"]


@dataclass(frozen=True)
class PathStat:
    """What stands at a path of a container; a symlink is not followed."""

    kind: PathKind
    size: int
    """Bytes."""
    mtime_ms: int
    """Unix time."""
    target: str = ""
    """Where a symlink leads to, as an absolute path; empty if that cannot be found out."""


class Duplex(Protocol):
    """A process's stdin and its two outputs."""

    async def read(self) -> Frame | None:
        """The next piece of output; None at the end, whatever ended it. Waits as long as the process is silent."""

    async def write(self, data: bytes) -> None:
        """Write all of `data` to stdin.

        Raises:
            ServerGone: if the process has ended or does not read for 10 s.
        """

    async def close(self) -> None:
        """Let go of both directions; stdin ends. Never raises."""


class Process(Protocol):
    """A command run beside a container's own process."""

    output: Duplex

    async def exit_code(self) -> int | None:
        """None while it runs."""


class ContainerEngine(Protocol):
    """Made by `open_docker_engine()`.

    Every method raises EngineUnavailable if the engine does not answer.
    """

    async def identity(self) -> str:
        """What tells this engine from every other, for as long as its data lives. Asked for once, then known."""

    async def image_digest(self, image: str) -> str:
        """The image's content id, `sha256:…`.

        Raises:
            ContainerStartFailed: if the engine has no such image.
        """

    async def create(self, spec: ContainerSpec) -> str:
        """Make a container and return its id; nothing runs yet.

        Raises:
            ContainerStartFailed: if the engine refuses the spec.
        """

    async def attach(self, container: str) -> Duplex:
        """Returns when the streams stand. Attach before `start`, or early output is lost."""

    async def start(self, container: str) -> None:
        """Returns when the process was started.

        Raises:
            ContainerStartFailed: if the engine could not start it.
        """

    async def execute(self, container: str, command: Sequence[str]) -> Process:
        """Start a command in a running container. Returns when it was started.

        Raises:
            ServerGone: if the container does not run.
        """

    async def inspect(self, container: str) -> ContainerState | None:
        """None if there is no such container."""

    async def remove(self, container: str) -> None:
        """Kill and delete, with its files. Returns when the container is gone; it is no error if it already was."""

    async def open_window(self, container: str) -> str:
        """Make a container that never runs and has nothing but the files directory of a running one; return its id.

        What is put and got through it cannot touch anything else: no symlink leads out of it, and its engine's lock is
        not that of the other container. Belongs to the same worker; `remove` closes it.

        Raises:
            ServerGone: if the container does not run.
            FilesUnavailable: if it has no files directory.
        """

    async def stat(self, container: str, path: str) -> PathStat | None:
        """What stands at an absolute path; None if nothing does. Symlinks on the way to it are followed.

        Raises:
            ServerGone: if there is no such container.
            FileChanged: if that changes while it is looked at.
        """

    async def put_archive(self, container: str, folder: str, tar: AsyncIterable[bytes]) -> None:
        """Unpack a tar stream into a folder, as root. Returns when it is unpacked.

        Nothing is overwritten by a thing of another kind: no folder by a file. What fails may leave a part behind.
        While it is under way the engine answers nothing else about the container, also no `remove`. It gives up when
        no piece came, or was taken, for 30 s.

        Raises:
            ServerGone: if there is no such container.
            NoSuchFile: if there is no such folder.
            FilesUnavailable: if nothing can be written there.
            NoSpace: if the files directory is full.
            FileChanged: if something else happened there meanwhile.
            ServiceError: what `tar` raises.
        """

    def get_archive(self, container: str, path: str) -> AsyncGenerator[bytes]:
        """The tar stream of a file, or of a folder with all in it, in pieces of at most 128 KiB.

        While it is under way the engine answers nothing else about the container, also no `remove`: close it. It
        gives up when no piece came for 30 s.

        Raises:
            ServerGone: if there is no such container.
            NoSuchFile: if nothing stands at the path.
        """

    async def containers(self, labels: Mapping[str, str]) -> list[ContainerInfo]:
        """Every container with these labels, running or not. An empty value matches any."""
