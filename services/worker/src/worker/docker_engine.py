"""ContainerEngine over aiodocker.

Facts that shaped it (aiodocker 0.27, each measured): with an own connector the URL must be `unix://localhost`;
the default connector's 100 connections are all taken by attached streams, and number 101 hangs; attaching to
a container that has ended hangs for ever; after the end of a stream a write raises a bare AssertionError.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiodocker import Docker
from aiodocker.exceptions import DockerError
from aiodocker.execs import Exec
from aiodocker.stream import Stream

from worker import docker_archive
from worker.docker_errors import translated
from worker.engine import FILES_DIR, MAX_FILES, ContainerInfo, ContainerSpec, ContainerState, Duplex, Frame, PathStat
from worker.errors import ContainerStartFailed, ServerGone

API_VERSION = (1, 41)
"""Docker 20.10's. What we ask for is the same in later ones; Docker 29 speaks no version before 1.44."""
CALL_TIMEOUT_S = 60.0
CONNECT_TIMEOUT_S = 5.0
WRITE_TIMEOUT_S = 10.0
GONE_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 2
_NO_ENGINE = 900
"""aiodocker's status for an engine that cannot be reached."""

# What a dead stream raises on a write: see the module docstring.
_STREAM_ENDED = (AssertionError, RuntimeError, OSError, aiohttp.ClientError)


class _Docker(Docker):
    """Speaks API_VERSION, or the engine's oldest where that is newer; aiodocker's `auto` takes the engine's newest."""

    async def _check_version(self) -> None:
        if self.api_version == "auto":
            found = await self._query_json("version", versioned_api=False)
            oldest = tuple(map(int, found.get("MinAPIVersion", "0").split(".")))
            self.api_version = "v" + ".".join(map(str, max(API_VERSION, oldest)))


class _DockerDuplex:
    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def read(self) -> Frame | None:
        try:
            message = await self._stream.read_out()
        except (aiohttp.ClientError, OSError):
            return None  # the engine went away: for the reader the same as an end
        return None if message is None else Frame(message.stream, message.data)

    async def write(self, data: bytes) -> None:
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await self._stream.write_in(data)
        except TimeoutError as exc:
            raise ServerGone(f"the server did not read its input for {WRITE_TIMEOUT_S:g} s") from exc
        except _STREAM_ENDED as exc:
            raise ServerGone("the server's input is closed") from exc

    async def close(self) -> None:
        try:
            await self._stream.close()
        except _STREAM_ENDED:
            return  # closed from the other side already


class _DockerProcess:
    def __init__(self, process: Exec, output: Duplex) -> None:
        self._process = process
        self.output = output

    async def exit_code(self) -> int | None:
        with translated("looking at a command"):
            state = await self._process.inspect()
        return None if state["Running"] else state["ExitCode"]


class DockerEngine:
    """Made by `open_docker_engine()`; the methods' contracts stand in `worker.engine`."""

    def __init__(self, docker: Docker) -> None:
        self._docker = docker
        self._identity = ""

    async def identity(self) -> str:
        if not self._identity:
            with translated("asking the engine who it is"):
                self._identity = str((await self._docker.system.info())["ID"])
        return self._identity

    async def image_digest(self, image: str) -> str:
        with translated(f"looking for image {image}"):
            try:
                found = await self._docker.images.inspect(image)
            except DockerError as exc:
                if exc.status == 404:
                    raise ContainerStartFailed(f"image {image!r} does not exist on this engine", image=image) from exc
                raise
        digest: str = found["Id"]
        return digest

    async def create(self, spec: ContainerSpec) -> str:
        with translated("creating a container"):
            try:
                container = await self._docker.containers.create(_config(spec))
            except DockerError as exc:
                if exc.status == 404:
                    raise ContainerStartFailed(
                        f"image {spec.image!r} does not exist on this engine", image=spec.image
                    ) from exc
                if exc.status < 500:
                    raise ContainerStartFailed(f"the engine refused the container: {exc.message}") from exc
                raise
        return str(container.id)

    async def attach(self, container: str) -> Duplex:
        stream = self._docker.containers.container(container).attach(stdin=True, stdout=True, stderr=True)
        with translated("attaching to a container"):
            await stream._init()  # the public way in is `async with`, which would tie it to one task
        return _DockerDuplex(stream)

    async def start(self, container: str) -> None:
        with translated("starting a container"):
            try:
                await self._docker.containers.container(container).start()
            except DockerError as exc:
                if exc.status != _NO_ENGINE:
                    raise ContainerStartFailed(f"the engine could not start the container: {exc.message}") from exc
                raise

    async def execute(self, container: str, command: Sequence[str]) -> _DockerProcess:
        with translated("starting a command"):
            try:
                process = await self._docker.containers.container(container).exec(list(command))
                stream = process.start(detach=False)
                await stream._init()
            except DockerError as exc:
                if exc.status in (404, 409):
                    raise ServerGone("the container does not run") from exc
                raise
        return _DockerProcess(process, _DockerDuplex(stream))

    async def inspect(self, container: str) -> ContainerState | None:
        with translated("looking at a container"):
            try:
                found = await self._docker.containers.container(container).show()
            except DockerError as exc:
                if exc.status == 404:
                    return None
                raise
        state = found["State"]
        running = bool(state["Running"])
        return ContainerState(running, None if running else state["ExitCode"], bool(state["OOMKilled"]))

    async def remove(self, container: str) -> None:
        async with asyncio.timeout(GONE_TIMEOUT_S):
            while True:
                with translated("removing a container"):
                    try:
                        await self._docker.containers.container(container).delete(force=True, v=True)
                    except DockerError as exc:
                        if exc.status == 404:
                            return
                        if exc.status != 409:
                            raise
                # Deleted, or being deleted by somebody else: gone is when the engine no longer knows it.
                if await self.inspect(container) is None:
                    return
                await asyncio.sleep(0.05)

    async def open_window(self, container: str) -> str:
        return await docker_archive.open_window(self._docker, container)

    async def stat(self, container: str, path: str) -> PathStat | None:
        return await docker_archive.stat(self._docker, container, path)

    async def put_archive(self, container: str, folder: str, tar: AsyncIterable[bytes]) -> None:
        await docker_archive.put_archive(self._docker, container, folder, tar)

    def get_archive(self, container: str, path: str) -> AsyncGenerator[bytes]:
        return docker_archive.get_archive(self._docker, container, path)

    async def containers(self, labels: Mapping[str, str]) -> list[ContainerInfo]:
        wanted = [f"{name}={value}" if value else name for name, value in labels.items()]
        with translated("listing containers"):
            found = await self._docker.containers.list(all=True, filters=json.dumps({"label": wanted}))
        return [
            ContainerInfo(
                id=str(item.id),
                running=item["State"] in ("running", "paused", "restarting"),
                labels=item["Labels"],
                created_s=float(item["Created"]),
            )
            for item in found
        ]


@asynccontextmanager
async def open_docker_engine(docker_host: str) -> AsyncIterator[DockerEngine]:
    """An engine at `unix:///path` or `tcp://host:port`. Does not connect yet: every call does."""
    timeout = aiohttp.ClientTimeout(total=CALL_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S)
    if docker_host.startswith("unix://"):
        connector: aiohttp.BaseConnector = aiohttp.UnixConnector(docker_host.removeprefix("unix://"), limit=0)
        url = "unix://localhost"
    else:
        connector = aiohttp.TCPConnector(limit=0)
        url = docker_host
    docker = _Docker(url=url, connector=connector, timeout=timeout)
    try:
        yield DockerEngine(docker)
    finally:
        await docker.close()
        await connector.close()


def _config(spec: ContainerSpec) -> dict[str, Any]:
    limits = spec.limits
    memory = limits.memory_mb * 1024 * 1024
    host: dict[str, Any] = {
        "NetworkMode": spec.network,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges:true"],
        "ReadonlyRootfs": True,
        "Tmpfs": {"/tmp": f"rw,noexec,nosuid,nodev,size={limits.tmpfs_mb}m,mode=1777"},
        "Memory": memory,
        "MemorySwap": memory,
        "NanoCpus": int(limits.cpus * 1e9),
        "PidsLimit": limits.pids,
        "Init": True,
        "IpcMode": "private",
        # The worker reads the streams itself; a json-file log would grow on the engine's disk.
        "LogConfig": {"Type": "none"},
        "RestartPolicy": {"Name": "no"},
        "Ulimits": [
            {"Name": "nofile", "Soft": 1024, "Hard": 1024},
            {"Name": "core", "Soft": 0, "Hard": 0},
        ],
    }
    if spec.files_mb is not None:
        host["Mounts"] = [_files_volume(spec)]
    if spec.runtime:
        host["Runtime"] = spec.runtime
    config: dict[str, Any] = {
        "Image": spec.image,
        "User": spec.user,
        "Env": [f"{name}={value}" for name, value in spec.env.items()],
        "Labels": dict(spec.labels),
        "OpenStdin": True,
        # The end of our attachment is the end of its stdin: a server that honours that dies with its worker.
        "StdinOnce": True,
        "Tty": False,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "StopTimeout": STOP_TIMEOUT_S,
        "HostConfig": host,
    }
    if spec.command is not None:
        config["Cmd"] = list(spec.command)
    return config


def _files_volume(spec: ContainerSpec) -> dict[str, Any]:
    """A volume without a name, made and removed with its container; a tmpfs, so that it has a size (docs/adr/0016)."""
    uid, gid = spec.user.split(":")
    options = f"size={spec.files_mb}m,nr_inodes={MAX_FILES},mode=0700,uid={uid},gid={gid},noexec,nosuid,nodev"
    driver = {"Name": "local", "Options": {"type": "tmpfs", "device": "tmpfs", "o": options}}
    return {"Type": "volume", "Target": FILES_DIR, "VolumeOptions": {"NoCopy": True, "DriverConfig": driver}}
