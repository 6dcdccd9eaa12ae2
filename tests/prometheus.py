"""A real Prometheus with the configuration of compose.yaml and our rules, which looks every second."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import yaml

from standalone.process import run_process
from tests.monitoring import ROOT, RULES
from tests.ports import free_port
from tests.programs import program

STOP_TIMEOUT_S: Final = 20.0
DEADLINE_S: Final = 30.0


class Prometheus:
    """Made by `run_prometheus()`."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """Its series now."""
        answer = (await self._http.get("/api/v1/query", params={"query": expression})).json()
        assert answer["status"] == "success", f"{expression}: {answer}"
        assert not answer.get("warnings"), f"{expression}: {answer}"
        found = answer["data"]["result"]
        return found if answer["data"]["resultType"] == "vector" else [found]

    async def until(self, expression: str) -> None:
        """Returns when the expression has a series."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                while not await self.query(expression):
                    await asyncio.sleep(0.1)
        except TimeoutError as exc:
            raise TimeoutError(f"nothing is found by {expression}") from exc

    async def rules(self) -> list[dict[str, Any]]:
        answer = (await self._http.get("/api/v1/rules")).json()
        return [rule for group in answer["data"]["groups"] for rule in group["rules"]]


def configuration(targets: Mapping[str, str]) -> dict[str, Any]:
    """That of compose.yaml, which finds its targets by DNS, for these; other jobs are left out."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text())
    config["global"] = dict.fromkeys(config["global"], "1s")
    config["rule_files"] = [str(RULES)]
    config["scrape_configs"] = [
        {"job_name": each["job_name"], "static_configs": [{"targets": [targets[each["job_name"]]]}]}
        for each in config["scrape_configs"]
        if each["job_name"] in targets
    ]
    return config


async def answering(http: httpx.AsyncClient) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                if (await http.get("/-/ready")).status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass  # it does not listen yet
            await asyncio.sleep(0.05)


@asynccontextmanager
async def run_prometheus(folder: Path, targets: Mapping[str, str]) -> AsyncIterator[Prometheus]:
    """`targets`: an address for each job. Ready when all of them have been seen."""
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(configuration(targets)))
    port = free_port()
    command = [
        str(program("prometheus")),
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'prometheus'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    async with (
        run_process("prometheus", command, log=folder / "prometheus.log", stop_timeout_s=STOP_TIMEOUT_S),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http,
    ):
        await answering(http)
        prometheus = Prometheus(http)
        await prometheus.until(f"sum(up) == {len(targets)}")
        yield prometheus
