"""A Docker daemon of the fault run's own, which may be killed: own data, own socket, own containers."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiodocker
import aiohttp

from tests.restartable import Restartable

ANSWER_TIMEOUT_S = 30.0
CALL_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 15.0
POLL_S = 0.05
API_VERSION = "v1.41"


class DockerDaemon(Restartable):
    """Made by `run_docker_daemon()`. Its containers outlive it, and are there again when it is started anew."""

    def __init__(self, folder: Path, exec_root: Path, runtimes: dict[str, Path]) -> None:
        self.data_root = folder / "docker"
        self.exec_root = exec_root
        self._socket = exec_root / "docker.sock"
        self._pidfile = folder / "dockerd.pid"
        self._config = folder / "daemon.json"
        argv = [
            "dockerd",
            f"--config-file={self._config}",
            f"--pidfile={self._pidfile}",
            f"--host={self.host}",
            f"--data-root={self.data_root}",
            f"--exec-root={exec_root}",
            f"--containerd-namespace={exec_root.name}",
            "--bridge=none",
            "--iptables=false",
            "--ip6tables=false",
            "--live-restore",
            *(f"--add-runtime={name}={program}" for name, program in runtimes.items()),
        ]
        super().__init__("dockerd", argv, folder=folder, stop_timeout_s=STOP_TIMEOUT_S)

    @property
    def host(self) -> str:
        return f"unix://{self._socket}"

    async def start(self) -> None:
        """Returns when it answers.

        Raises:
            TimeoutError: if it does not; its log says why.
        """
        self._config.write_text("{}")  # else the settings of the machine apply
        # It believes a pid file, and would kill whoever has that number now.
        await self._end(self._containerd_pid())
        for stale in (self._pidfile, self._containerd_pidfile, self._socket):
            stale.unlink(missing_ok=True)
        await super().start()
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            while not await self.answers():
                await asyncio.sleep(POLL_S)

    async def answers(self) -> bool:
        if not self._socket.exists():
            return False
        try:
            async with open_docker(self.host, timeout_s=2) as docker:
                await docker.version()
        except (aiodocker.DockerError, aiohttp.ClientError, TimeoutError, OSError):
            return False
        return True

    async def load(self, image: str, source: str) -> None:
        """Copy an image from another engine."""
        async with (
            open_docker(source) as there,
            open_docker(self.host) as here,
            there.images.export_image(image) as tar,
        ):
            await here.images.import_image(tar.iter_chunked(256 * 1024))

    async def containers(self) -> dict[str, str]:
        """Every container, running or not: its id, and what the engine says of it.

        Raises:
            DockerError, ClientError, TimeoutError: if the engine does not answer.
        """
        async with open_docker(self.host) as docker, asyncio.timeout(CALL_TIMEOUT_S):
            found = await docker.containers.list(all=True)
        return {item.id: f"{item.id[:12]} {item['State']} {item['Labels']}" for item in found}

    async def server_pids(self) -> dict[str, int]:
        """The server process of every running container, by the container's id. Raises as `containers()`."""
        pids = {}
        async with open_docker(self.host) as docker, asyncio.timeout(CALL_TIMEOUT_S):
            for item in await docker.containers.list(filters={"status": ["running"]}):
                try:
                    state = (await item.show())["State"]
                except aiodocker.DockerError:
                    continue  # removed meanwhile
                if children := _children(state["Pid"]):  # process 1 is the engine's init
                    pids[item.id] = children[0]
        return pids

    async def close(self) -> None:
        """Returns when neither a container nor a process nor a mount of it is left."""
        self.thaw()
        if self.starts:
            if not self.running:
                await self.start()
            async with open_docker(self.host) as docker, asyncio.timeout(CALL_TIMEOUT_S):
                for item in await docker.containers.list(all=True):
                    await item.delete(force=True)
        await super().close()
        for pid in [*self.processes()]:
            await self._end(pid)
        await asyncio.to_thread(self._unmount)
        shutil.rmtree(self.exec_root, ignore_errors=True)
        shutil.rmtree(self.data_root, ignore_errors=True)

    def processes(self) -> dict[int, str]:
        """containerd and the shims: they name the exec root in their command line, and have left our process tree."""
        found = {}
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue  # it ended while we looked
            if "containerd" in line and f"{self.exec_root}/" in line:
                found[int(path.parent.name)] = line.strip()
        return found

    @property
    def _containerd_pidfile(self) -> Path:
        return self.exec_root / "containerd" / "containerd.pid"

    def _containerd_pid(self) -> int:
        """0 if none runs."""
        try:
            pid = int(self._containerd_pidfile.read_text())
        except (OSError, ValueError):
            return 0
        return pid if pid in self.processes() else 0

    async def _end(self, pid: int) -> None:
        """Returns when the process, which is not a child of ours, is gone."""
        if not pid:
            return
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        async with asyncio.timeout(STOP_TIMEOUT_S):
            while pid in self.processes():
                await asyncio.sleep(POLL_S)

    def _unmount(self) -> None:
        """The last mounts first: they may lie within the others."""
        for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            place = Path(line.split()[1])
            if {self.data_root, self.exec_root} & {place, *place.parents}:
                subprocess.run(["umount", "-l", place], check=False)


@asynccontextmanager
async def open_docker(host: str, timeout_s: float = CALL_TIMEOUT_S) -> AsyncIterator[aiodocker.Docker]:
    """A client of the engine at `unix:///path` or `tcp://host:port`."""
    timeout = aiohttp.ClientTimeout(sock_connect=timeout_s, sock_read=timeout_s)
    async with aiodocker.Docker(url=host, api_version=API_VERSION, timeout=timeout) as docker:
        yield docker


@asynccontextmanager
async def run_docker_daemon(folder: Path, runtimes: dict[str, Path]) -> AsyncIterator[DockerDaemon]:
    """A daemon with its data in `folder` and these extra OCI runtimes; gone with all its containers on leaving."""
    # The paths of unix sockets end at 107 bytes, and containerd nests several levels below the exec root.
    exec_root = Path("/run") / f"chaos-{os.getpid()}"
    os.mkdir(exec_root)
    daemon = DockerDaemon(folder, exec_root, runtimes)
    try:
        await daemon.start()
        yield daemon
    finally:
        await daemon.close()


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []  # it ended meanwhile
