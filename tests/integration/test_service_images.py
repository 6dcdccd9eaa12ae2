"""The images of gateway and worker, really built and run, without a registry and without a package index."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from gateway.settings import hash_key
from tests.nats_server import NatsServer
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
BASE = "mcp-orchestrator/base-python:local"
DEADLINE_S = 60.0
LARGEST_MB = 300
"""Of an image: 133 MB are the base image that is made without a registry."""

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]


class Docker:
    """The program `docker` on the engine of the tests."""

    def __init__(self, host: str) -> None:
        self._env = {**os.environ, "DOCKER_HOST": host, "DOCKER_BUILDKIT": "0"}

    def __call__(self, *arguments: str) -> str:
        """What it prints; a failure fails the test."""
        found = subprocess.run(["docker", *arguments], cwd=ROOT, env=self._env, capture_output=True, text=True)
        assert found.returncode == 0, found.stdout + found.stderr
        return found.stdout.strip()

    def inspect(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self("inspect", name))[0]
        return found

    @contextmanager
    def running(self, image: str, *options: str, **env: str) -> Iterator[str]:
        """A container on the network of this machine, hardened as on Kubernetes."""
        name = f"test-{uuid4().hex}"
        given = [part for key, value in env.items() for part in ("-e", f"{key}={value}")]
        hard = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
        self(
            "run", "-d", "--name", name, "--network", "host", "--health-interval", "1s", *hard, *options, *given, image
        )
        try:
            yield name
        finally:
            self("rm", "-f", name)

    async def until_healthy(self, name: str) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while (state := self.inspect(name)["State"])["Health"]["Status"] != "healthy":
                assert state["Running"], self("logs", name)
                await asyncio.sleep(0.2)


@pytest.fixture(scope="module")
def docker(docker_host: str) -> Docker:
    return Docker(docker_host)


@pytest.fixture(scope="module")
def images(docker: Docker) -> dict[str, str]:
    """Both images, by service; everything that they need was fetched before."""
    subprocess.run([ROOT / "deploy/wheels.sh"], check=True, timeout=240)
    tags = {}
    try:
        for service in ("gateway", "worker"):
            tags[service] = f"mcp-orchestrator/{service}:test"
            given = [
                "--network",
                "none",
                "--target",
                "service",
                "--build-arg",
                f"BASE_IMAGE={BASE}",
                "-f",
                f"services/{service}/Dockerfile",
            ]
            docker("build", "--quiet", *given, "-t", tags[service], ".")
    finally:
        shutil.rmtree(ROOT / "wheels")  # as long as it is there, builds use it, not the sources
    return tags


def group_of(path: str) -> int:
    return os.stat(path).st_gid


@pytest.mark.parametrize("service", ["gateway", "worker"])
def test_an_image_is_small_and_says_what_is_in_it(docker: Docker, images: dict[str, str], service: str) -> None:
    """No user is named root, and the bill of packages that its label points at has the service's own."""
    found = docker.inspect(images[service])
    labels = found["Config"]["Labels"]
    print(f"{service}: {found['Size'] / 1e6:.0f} MB")
    bill = json.loads(
        docker(
            "run", "--rm", "--network", "none", "--entrypoint", "cat", images[service], labels["mcp-orchestrator.sbom"]
        )
    )

    assert found["Config"]["User"] == "10001:10001"
    assert found["Size"] < LARGEST_MB * 1_000_000
    assert labels["org.opencontainers.image.title"] == f"mcp-orchestrator-{service}"
    assert {"mcp-orchestrator-common", "nats-py"} <= {each["name"] for each in bill["components"]}


async def test_both_services_become_healthy_and_end_on_sigterm(
    docker: Docker, images: dict[str, str], nats_server: NatsServer, docker_host: str
) -> None:
    """As a user without rights, on a root file system that is read-only; exit code 0."""
    engine = docker_host.removeprefix("unix://")
    keys = json.dumps({"acme": hash_key("acme-key")})
    gateway = {"PORT": str(free_port()), "HOST": "127.0.0.1", "API_KEYS": keys}
    worker = {"HEALTH_PORT": str(free_port()), "HEALTH_HOST": "127.0.0.1"}
    socket = ["-v", f"{engine}:/var/run/docker.sock", "--group-add", str(group_of(engine))]
    with (
        docker.running(images["gateway"], NATS_URL=nats_server.url, **gateway) as first,
        docker.running(images["worker"], *socket, NATS_URL=nats_server.url, **worker) as second,
    ):
        for name in (first, second):
            await docker.until_healthy(name)
        for name in (first, second):
            docker("stop", "-t", "40", name)
            assert docker.inspect(name)["State"]["ExitCode"] == 0, docker("logs", name)
