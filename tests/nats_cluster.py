"""Three real nats-server processes that replicate JetStream, for a test that takes them down one by one."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from standalone.nats_server import BINARY
from tests.nats_server import AUTHORIZATION, PASSWORDS, VIOLATION
from tests.ports import free_port
from tests.restartable import Restartable

HEALTHY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
PROBE_TIMEOUT_S = 1.0
PROBE_PERIOD_S = 0.1
ANSWER = 'Publish Violation - Subject "_INBOX_'

# no_advertise: clients stay on the addresses that they were given, such as those of a proxy.
CONFIG = """\
server_name: {name}
listen: "127.0.0.1:{port}"
http: "127.0.0.1:{monitor_port}"
max_payload: 8MB
jetstream {{
  store_dir: "{store}"
  max_file_store: 24GB
  {sync}
}}
cluster {{
  name: test
  listen: "127.0.0.1:{cluster_port}"
  no_advertise: true
  routes: [{routes}]
}}
include {authorization}
no_auth_user: operator
"""


class NatsNode(Restartable):
    """One server of the cluster; its ports and its store stay what they are over restarts."""

    def __init__(self, name: str, folder: Path) -> None:
        self.port = free_port()
        self.cluster_port = free_port()
        self.monitor_port = free_port()
        self._config = folder / f"{name}.conf"
        self._store = folder / f"{name}.store"
        super().__init__(
            name,
            [BINARY, "--config", self._config],
            folder=folder,
            stop_timeout_s=STOP_TIMEOUT_S,
            env={**os.environ, **PASSWORDS},
        )

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def violations(self) -> list[str]:
        """What users tried that they may not, over all starts.

        Answers are left out: the node refuses those that come late, or through another one than their request.
        """
        logs = self._config.parent.glob(f"{self.name}.*.log")
        lines = [line for log in logs for line in log.read_text().splitlines()]
        return [line for line in lines if VIOLATION in line and ANSWER not in line]

    def configure(self, nodes: list[NatsNode], sync_always: bool) -> None:
        config = CONFIG.format(
            name=self.name,
            port=self.port,
            monitor_port=self.monitor_port,
            cluster_port=self.cluster_port,
            store=self._store,
            sync="sync_interval: always" if sync_always else "",
            authorization=AUTHORIZATION.name,
            routes=", ".join(f'"nats-route://127.0.0.1:{node.cluster_port}"' for node in nodes),
        )
        self._config.write_text(config)


class NatsCluster:
    """Made by `run_nats_cluster()`."""

    def __init__(self, nodes: list[NatsNode], probe: httpx.AsyncClient) -> None:
        self.nodes = nodes
        self._probe = probe

    @property
    def url(self) -> str:
        """All nodes, separated by commas."""
        return ",".join(node.url for node in self.nodes)

    async def faults(self) -> list[str]:
        """Why the cluster is not healthy, node by node: a healthy node has all that is stored, and is up to date."""
        return [fault for fault in await asyncio.gather(*map(self._fault, self.nodes)) if fault]

    async def wait_until_healthy(self, timeout_s: float = HEALTHY_TIMEOUT_S) -> None:
        """Returns when every node is up to date.

        Raises:
            TimeoutError: saying what is amiss.
        """
        faults = ["never asked"]
        try:
            async with asyncio.timeout(timeout_s):
                while faults := await self.faults():
                    await asyncio.sleep(PROBE_PERIOD_S)
        except TimeoutError as exc:
            raise TimeoutError(f"the cluster is not healthy after {timeout_s:g} s: {'; '.join(faults)}") from exc

    async def _fault(self, node: NatsNode) -> str:
        try:
            answer = await self._probe.get(f"http://127.0.0.1:{node.monitor_port}/healthz")
        except httpx.HTTPError as exc:
            return f"{node.name}: {type(exc).__name__}"
        return "" if answer.status_code == 200 else f"{node.name}: {answer.text.strip()}"


@asynccontextmanager
async def run_nats_cluster(folder: Path, *, size: int = 3, sync_always: bool = False) -> AsyncIterator[NatsCluster]:
    """A cluster on loopback that keeps its stores, logs and configurations in `folder`; gone when the context ends.

    Under the permissions of production: no service may have tried there what its user is not allowed.
    With `sync_always` every write is on the disk before it is acknowledged.
    """
    nodes = [NatsNode(f"nats-{number}", folder) for number in range(1, size + 1)]
    # Once, before any of them reads it.
    shutil.copy(AUTHORIZATION, folder)
    try:
        for node in nodes:
            node.configure(nodes, sync_always)
            await node.start()
        async with httpx.AsyncClient(timeout=PROBE_TIMEOUT_S, trust_env=False) as probe:
            cluster = NatsCluster(nodes, probe)
            await cluster.wait_until_healthy()
            yield cluster
        assert [line for node in nodes for line in node.violations()] == []
    finally:
        for node in nodes:
            await node.close()
