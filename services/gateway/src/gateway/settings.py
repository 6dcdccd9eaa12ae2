"""The gateway's settings, read once at start from the environment (`common.settings.load`)."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from typing import Annotated, Any, Final

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import NoDecode

from common.allowance import DEFAULT_BYTES
from common.runtime import RuntimeSettings
from common.settings import BusSettings

DEVELOPMENT_KEY: Final = "development"
"""The key of the tenant `development`: public, so it opens nothing but a loopback address."""

RATE_MIN: Final = 0.01
"""Calls a second: less is no rate that a client could wait for."""

_SHA256_HEX: Final = re.compile(r"[0-9a-f]{64}")


def hash_key(key: str) -> str:
    """What API_KEYS holds for a key."""
    return hashlib.sha256(key.encode()).hexdigest()


class GatewaySettings(BusSettings, RuntimeSettings):
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=8080, ge=0, le=65_535)
    """Port to listen on; 0 takes any that is free."""
    api_keys: Annotated[dict[str, str], NoDecode] = Field(
        default_factory=lambda: {"development": hash_key(DEVELOPMENT_KEY)}, validate_default=True
    )
    """Tenant → SHA-256 of its key in hex; a JSON object. Keys themselves are never stored."""
    operators: Annotated[frozenset[str], NoDecode] = frozenset({"development"})
    """Tenants that see and act on the dead letters of all tenants; comma-separated."""
    job_timeout_ms: int = Field(default=300_000, ge=1, le=86_400_000)
    """Start-to-close of a job whose server and tool set none."""
    chat_timeout_ms: int = Field(default=900_000, ge=1, le=86_400_000)
    """Start-to-close of a chat turn: with all its calls, and the time that users take to approve them."""
    max_request_bytes: int = Field(default=1_000_000, ge=1_024, le=16_000_000)
    """Size of one frame or body; a frame above four times that ends its connection."""
    max_upload_bytes: int = Field(default=64 * 1024**2, ge=1_024)
    """Size of one file on its way to a container."""
    max_sessions_per_connection: int = Field(default=16, ge=1, le=1_000)
    """Sessions whose events one WebSocket carries."""
    max_requests_per_connection: int = Field(default=64, ge=1, le=10_000)
    """Requests of one WebSocket that are answered at once; beyond it the socket is not read."""
    send_budget_bytes: int = Field(default=DEFAULT_BYTES, ge=262_144, le=1_073_741_824)
    """Bytes of events that are held at once for one connection, over all its sessions; the others wait in the store."""
    stalled_client_s: float = Field(default=30, gt=0, le=3_600)
    """A connection whose client takes nothing of what is sent to it for this long is ended."""
    tenant_rate: float = Field(default=1_000, ge=0, le=1_000_000)
    """Calls a second that one tenant may make through this gateway for long; 0 sets no limit. Each gateway counts for
    itself."""
    tenant_burst: int = Field(default=2_000, ge=1, le=10_000_000)
    """Calls that one tenant may make at once, before TENANT_RATE holds it back."""
    max_jobs_in_flight: int = Field(default=256, ge=1, le=1_000_000)
    """Jobs of one session that may wait or run, on all servers and through all gateways."""
    ping_interval_s: float = Field(default=20, gt=0)
    """How often a WebSocket is pinged: keeps idle connections alive in what lies between."""
    event_stream_ping_interval_s: float = Field(default=15, gt=0)
    """How often a comment is sent on a Server-Sent Events stream."""
    sweep_period_s: float = Field(default=2, gt=0)
    """Between two looks for jobs that nobody takes; one gateway of all looks."""
    drain_timeout_s: float = Field(default=10, gt=0)
    """From SIGTERM to the moment when connections that are still open are cut."""

    @field_validator("tenant_rate")
    @classmethod
    def _a_rate_or_none(cls, rate: float) -> float:
        if 0 < rate < RATE_MIN:
            raise ValueError(f"must be 0, which sets no limit, or at least {RATE_MIN:g}")
        return rate

    @field_validator("api_keys", mode="before")
    @classmethod
    def _from_json(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except ValueError as exc:
            raise ValueError('must be a JSON object such as {"tenant": "<sha256 of its key in hex>"}') from exc

    @field_validator("operators", mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return frozenset(name.strip() for name in value.split(",") if name.strip())

    @field_validator("api_keys")
    @classmethod
    def _usable(cls, keys: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        if not keys:
            raise ValueError("must name at least one tenant")
        malformed = [tenant for tenant, digest in keys.items() if not _SHA256_HEX.fullmatch(digest)]
        if malformed:
            raise ValueError(f"not a SHA-256 in 64 lower-case hex digits: the entry of {', '.join(malformed)}")
        if len(set(keys.values())) < len(keys):
            raise ValueError("two tenants have the same key")
        host = info.data.get("host", "")
        if hash_key(DEVELOPMENT_KEY) in keys.values() and not _is_loopback(host):
            raise ValueError(
                f"the development key is public and HOST is {host}: set API_KEYS to keys of your own,"
                " or HOST to a loopback address"
            )
        return keys


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
