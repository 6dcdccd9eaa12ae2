"""Reading settings: one frozen class per service, all faults reported together.

Names in the environment are the field names in upper case. Units stand in the names.
"""

from __future__ import annotations

import sys
from typing import Final, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from common.streams import Limits

EXIT_BAD_SETTINGS = 2

DurabilityLevel = Literal["process", "power"]
"""What an acknowledged message survives: the kill of every process, or the loss of power too (docs/adr/0009)."""

REPLICAS: Final[dict[DurabilityLevel, int]] = {"process": 1, "power": 3}
"""Copies of every stream where NATS_REPLICAS does not say how many."""


class BusSettings(BaseSettings):
    """What every service needs to reach NATS and to agree on the layout."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", case_sensitive=False)

    nats_url: str = "nats://127.0.0.1:4222"
    """Comma-separated addresses of the NATS servers; credentials may stand in the URL."""
    nats_user: str = ""
    """Logs in at NATS with NATS_PASSWORD; empty where anybody may connect, or where the URL says who."""
    nats_password: SecretStr = SecretStr("")
    durability: DurabilityLevel = "process"
    """What an accepted job survives; at start the servers are asked whether they keep to it (common.durability)."""
    nats_replicas: int | None = Field(default=None, ge=1, le=5)
    """Copies of every stream; unset, 1 at `process` and 3 at `power`."""
    nats_monitor_url: str = ""
    """Comma-separated http addresses of the monitoring ports of all NATS servers; needed at `power` only."""
    queue_limit: int = Field(default=100, ge=1, le=100_000)
    """Jobs of one session that may wait or run on one server."""
    resume_window_s: float = Field(default=3600, ge=1)
    """How long events can be replayed after a reconnect."""
    session_ttl_s: float = Field(default=86_400, ge=1)
    """How long a session is known after it was last opened or used."""
    artifact_ttl_s: float = Field(default=86_400, ge=1)
    """How long the output of a job beyond a first part, and a file on its way, can be read."""
    artifact_store_bytes: int = Field(default=8 * 1024**3, ge=1024**2)
    """What the output of all jobs may take in the store; beyond it a job that produces more ends with an error."""
    enable_conversation_compression: bool = True
    """Whether conversations are written compressed; reading takes every form, mixed."""
    conversation_store_bytes: int = Field(default=2 * 1024**3, ge=1024**2)
    """What the messages of all conversations may take in the store; beyond it nothing is added to any."""
    lease_ttl_s: float = Field(default=30, ge=1)
    """How long a lease outlives its last renewal."""
    ack_wait_s: float = Field(default=30, ge=1)
    """Heartbeat timeout of a running job: after this long without one the job is delivered again."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "console"] = "auto"
    """`auto` is `console` on a terminal and `json` otherwise."""

    @field_validator("nats_monitor_url")
    @classmethod
    def _addresses(cls, value: str) -> str:
        for number, address in enumerate(value.split(",") if value else (), 1):
            if not _is_monitor_address(address.strip()):
                raise ValueError(f"address {number} is not of the form http://host:port")
        return value

    @property
    def replicas(self) -> int:
        """Copies of every stream."""
        return self.nats_replicas or REPLICAS[self.durability]

    @property
    def monitor_addresses(self) -> list[str]:
        """Those of NATS_MONITOR_URL, each without a slash at its end."""
        return [address.strip().rstrip("/") for address in self.nats_monitor_url.split(",") if address]

    def limits(self) -> Limits:
        return Limits(
            queue_limit=self.queue_limit,
            resume_window_s=self.resume_window_s,
            session_ttl_s=self.session_ttl_s,
            artifact_ttl_s=self.artifact_ttl_s,
            artifact_store_bytes=self.artifact_store_bytes,
            conversation_store_bytes=self.conversation_store_bytes,
            lease_ttl_s=self.lease_ttl_s,
            replicas=self.replicas,
        )


def _is_monitor_address(text: str) -> bool:
    try:
        url = urlsplit(text)
        _ = url.port  # raises where it is no port's number
    except ValueError:
        return False
    # No credentials: the addresses are logged.
    return url.scheme in ("http", "https") and bool(url.hostname) and url.username is None and url.path in ("", "/")


S = TypeVar("S", bound=BaseSettings)


def load(cls: type[S]) -> S:
    """Read `cls` from the environment, or say everything that is wrong with it and exit with code 2."""
    try:
        return cls()
    except ValidationError as exc:
        lines = [f"{cls.__name__}: {exc.error_count()} setting(s) cannot be used:"]
        for fault in exc.errors(include_url=False):
            name = "_".join(str(part) for part in fault["loc"]).upper() or "(combination)"
            # The value is left out when it may be a secret, as all values together may; the name tells enough.
            shown = "" if "KEY" in name or "URL" in name or not fault["loc"] else f" (got {fault['input']!r})"
            lines.append(f"  {name}: {fault['msg']}{shown}")
        print("\n".join(lines), file=sys.stderr)
        raise SystemExit(EXIT_BAD_SETTINGS) from None
