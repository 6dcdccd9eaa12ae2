"""A container of a session, alone on a real engine, and what can be found out about it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiodocker
import aiohttp

from common.catalog import ContainerLimits, ServerSpec
from worker.container import container_spec
from worker.docker_engine import DockerEngine
from worker.engine import ContainerSpec
from worker.executors.exec import IDLE_COMMAND

IMAGE = "mcp-orchestrator/exec:local"
LABEL = "mcp-orchestrator.test-of-files"
SESSION = ServerSpec(kind="exec", image=IMAGE, scope="session", limits=ContainerLimits(files_mb=8))


def spec_of(server: ServerSpec) -> ContainerSpec:
    return container_spec("exec", server, {}, list(IDLE_COMMAND), {LABEL: "1"})


@asynccontextmanager
async def container(engine: DockerEngine, spec: ContainerSpec) -> AsyncIterator[str]:
    made = await engine.create(spec)
    try:
        await engine.start(made)
        yield made
    finally:
        await engine.remove(made)


async def shell(engine: DockerEngine, box: str, command: str) -> str:
    """What a command in the container says, as the tool's user."""
    process = await engine.execute(box, ["/bin/sh", "-c", command])
    said = b""
    async with asyncio.timeout(20):
        while (frame := await process.output.read()) is not None:
            said += frame.data
    await process.output.close()
    return said.decode().strip()


async def volumes_of(docker_host: str, box: str) -> list[dict[str, Any]]:
    """The volumes that a container has, as the engine tells."""
    async with raw(docker_host) as docker:
        shown = await docker.containers.container(box).show()
        return [mount for mount in shown["Mounts"] if mount["Type"] == "volume"]


@asynccontextmanager
async def raw(docker_host: str) -> AsyncIterator[aiodocker.Docker]:
    connector = aiohttp.UnixConnector(docker_host.removeprefix("unix://"))
    docker = aiodocker.Docker(url="unix://localhost", connector=connector, api_version="v1.41")
    try:
        yield docker
    finally:
        await docker.close()
        await connector.close()


async def volume_names(docker_host: str) -> set[str]:
    async with raw(docker_host) as docker:
        return {volume["Name"] for volume in (await docker.volumes.list())["Volumes"] or []}  # type: ignore[no-untyped-call]
