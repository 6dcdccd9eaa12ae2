"""Settings of the worker. Names in the environment are the field names in upper case."""

from __future__ import annotations

import os
from typing import Self

from pydantic import Field, model_validator

from common.settings import BusSettings
from worker.output_stream import OutputLimits


class WorkerSettings(BusSettings):
    worker_concurrency: int = Field(default=10, ge=1, le=1000)
    """Jobs at once in this process, over all servers."""
    stream_output_threshold_bytes: int = Field(default=1024**2, ge=1024, le=2 * 1024**2)
    """Output up to this size stands whole in a job's result; more of it comes in events only."""
    artifact_threshold_bytes: int = Field(default=8 * 1024**2, ge=1024)
    """Output above this size is offered for download."""
    max_output_bytes: int = Field(default=2 * 1024**3, ge=1024)
    """What one job may write before it is stopped."""
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

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.stream_output_threshold_bytes <= self.artifact_threshold_bytes <= self.max_output_bytes:
            raise ValueError(
                "must grow in this order: STREAM_OUTPUT_THRESHOLD_BYTES, ARTIFACT_THRESHOLD_BYTES, MAX_OUTPUT_BYTES"
            )
        return self

    def output_limits(self) -> OutputLimits:
        return OutputLimits(
            collect=self.stream_output_threshold_bytes,
            offer=self.artifact_threshold_bytes,
            most=self.max_output_bytes,
        )
