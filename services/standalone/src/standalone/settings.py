"""Settings of everything on one machine.

The environment reaches the services too, so that every setting of theirs can be given here as well
(WORKER_CONCURRENCY, API_KEYS, QUEUE_LIMIT, DOCKER_HOST, …).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from common.settings import DurabilityLevel


class StandaloneSettings(BaseSettings):
    model_config = SettingsConfigDict(frozen=True, extra="ignore", case_sensitive=False)

    host: str = "127.0.0.1"
    """Address that the gateway listens on."""
    port: int = Field(default=8080, ge=0, le=65_535)
    """The gateway's port; 0 takes any that is free."""
    nats_port: int = Field(default=-1, ge=-1, le=65_535)
    """nats-server's port on 127.0.0.1; -1 takes any that is free."""
    durability: DurabilityLevel = "process"
    """At `power` nats-server syncs to disk before it acknowledges. One server keeps one copy at either level."""
    state_dir: Path = Path(".run/standalone")
    """Store of nats-server, and the logs. Sessions and queued jobs survive a restart in here."""
    servers_file: Path = Path("servers.yaml")
    """The catalog, applied at each start."""
    workers: int = Field(default=1, ge=1, le=16)
    enable_worker_mode: bool = True
    """True: gateway and workers are processes of their own. False: all in this one."""
    start_timeout_s: float = Field(default=60, gt=0)
    """How long a service may take to become ready."""
    drain_timeout_s: float = Field(default=10, gt=0)
    """How long services may take for running jobs when they are stopped."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "console"] = "auto"
    """Of services in this process; those of their own write JSON to their log files."""
