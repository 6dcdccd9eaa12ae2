"""The container engine as a benchmark reaches it: beside the worker, with nothing of ours between."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from aiodocker import Docker


def docker_host() -> str:
    return os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")


@asynccontextmanager
async def open_docker() -> AsyncIterator[Docker]:
    connector = aiohttp.UnixConnector(docker_host().removeprefix("unix://"), limit=0)
    docker = Docker(url="unix://localhost", connector=connector, api_version="v1.41")
    try:
        yield docker
    finally:
        await docker.close()
        await connector.close()
