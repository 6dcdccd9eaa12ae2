"""Settings of the worker. Names in the environment are the field names in upper case."""

from __future__ import annotations

import os

from pydantic import Field

from common.settings import BusSettings


class WorkerSettings(BusSettings):
    worker_concurrency: int = Field(default=10, ge=1, le=1000)
    """Jobs at once in this process, over all servers."""
    docker_host: str = "unix:///var/run/docker.sock"
    """The engine: `unix:///path` or `tcp://host:port`."""
    boots_at_once: int = Field(default_factory=lambda: os.cpu_count() or 2, ge=1)
    """Containers that start at the same time."""
    drain_timeout_s: float = Field(default=25, ge=0)
    """How long running jobs may go on after SIGTERM; below the pod's grace period."""
    reap_period_s: float = Field(default=15, gt=0)
    """Between two looks for containers that no live worker owns."""
    health_host: str = "127.0.0.1"
    health_port: int = Field(default=8081, ge=0, le=65535)
    """Where /livez, /readyz and /metrics are served."""
