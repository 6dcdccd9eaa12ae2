"""What should be gone after the stack has stopped: its processes and its containers."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from worker.docker_engine import open_docker_engine
from worker.reaper import STORE_LABEL
from worker.settings import WorkerSettings


async def containers_of(store: str) -> list[str]:
    """Ids of the containers that were made for a store; `store` is the epoch that sessions tell.

    Raises:
        EngineUnavailable: if the Docker Engine does not answer.
    """
    settings = WorkerSettings()
    async with open_docker_engine(settings.docker_host) as engine:
        return [container.id for container in await engine.containers({STORE_LABEL: store})]


def processes_of(leaders: Collection[int]) -> dict[int, str]:
    """Living processes of the sessions that these processes lead or led, by pid, with their command lines."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            command = stat.with_name("cmdline").read_bytes()
        except OSError:
            continue  # it ended while we looked
        if int(session) in leaders and state != "Z":
            found[int(stat.parent.name)] = command.replace(b"\0", b" ").decode(errors="replace").strip()
    return found
