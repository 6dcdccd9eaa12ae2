"""Is the store as durable as DURABILITY asks for? Told by a warning, in `status/get` and as a metric.

The servers are asked: `/varz` of each monitoring address says whether it syncs before it acknowledges
(`jetstream.config.sync_always`, else every `sync_interval`) and how many servers form its cluster
(`jetstream.meta.cluster_size`); stream info says how many copies there are (docs/architecture.md, "Durability").
"""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import Iterator
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final
from urllib.parse import urlsplit

from common import metrics
from common.bus import Bus
from common.errors import StoreUnavailable
from common.log import get
from common.settings import BusSettings
from common.streams import ARTIFACTS, DEAD_LETTERS, JOBS, Keeping

_log = get(__name__)

MONITOR_TIMEOUT_S: Final = 2.0
"""For the whole answer of one monitoring address."""
MAX_ANSWER_BYTES: Final = 1024 * 1024
"""Of one monitoring address; `/varz` has about 5 KB."""
CHECK_PERIOD_S: Final = 300.0
"""Servers are replaced and reconfigured while services run."""
RETRY_S: Final = 5.0

NEVER_ASYNC: Final = (JOBS, DEAD_LETTERS, ARTIFACTS)
"""Streams that hold what was promised to be kept."""

_NANOSECONDS: Final = 1e9
_READ_BYTES: Final = 64 * 1024


class Unverified(Exception):
    """A monitoring address did not answer as a nats-server does."""


@dataclass(frozen=True)
class ServerSettings:
    """What one nats-server says of itself."""

    id: str
    name: str
    sync_always: bool
    sync_interval_s: float
    cluster_size: int
    jetstream: bool
    """Without JetStream it stores nothing."""


class Durability:
    """What is asked for, and what falls short of it. `watch()` looks; nothing here stops a start."""

    def __init__(self, settings: BusSettings) -> None:
        self.weaknesses: list[str] = []
        """One sentence each, as of the last look; empty before the first."""
        self._settings = settings

    def as_dict(self) -> dict[str, Any]:
        return {"level": self._settings.durability, "weaknesses": self.weaknesses}

    async def watch(self, bus: Bus, period_s: float = CHECK_PERIOD_S) -> None:
        """Look now and every `period_s`; warn of each weakness once. Runs until cancelled."""
        while True:
            try:
                await self.look(bus)
            except StoreUnavailable as exc:
                _log.info("durability not checked, retrying", reason=exc.message)
                await asyncio.sleep(RETRY_S)
            else:
                await asyncio.sleep(period_s)

    async def look(self, bus: Bus) -> None:
        """Returns when `weaknesses` is up to date; takes MONITOR_TIMEOUT_S where an address does not answer.

        Raises:
            StoreUnavailable: if the streams cannot be asked; `weaknesses` is as before then.
        """
        found = list(_of_streams(await bus.keeping(bus.limits), self._settings.replicas))
        if self._settings.durability == "power":
            found += await _of_servers(self._settings.monitor_addresses)
        level = self._settings.durability
        for weakness in found:
            if weakness not in self.weaknesses:
                _log.warning("the store is weaker than DURABILITY asks for", durability=level, weakness=weakness)
        if self.weaknesses and not found:
            _log.info("the store is as durable as asked for", durability=level)
        self.weaknesses = found
        metrics.DURABILITY_WEAKNESSES.set(len(found))


def _of_streams(streams: list[Keeping], replicas: int) -> Iterator[str]:
    for stream in streams:
        if stream.replicas < replicas:
            yield (
                f"stream {stream.stream} has {stream.replicas} of the {replicas} replicas that are asked for:"
                " it is lost, or stands still, with fewer machines lost; change it with:"
                f" nats stream edit {stream.stream} --replicas {replicas}"
            )
        if stream.asynchronous and stream.stream in NEVER_ASYNC:
            yield (
                f"stream {stream.stream} has persist_mode async: what it acknowledged can be lost when its server is"
                " killed; a stream keeps the mode that it was made with, so it has to be made anew"
            )


async def _of_servers(addresses: list[str]) -> list[str]:
    if not addresses:
        return [
            "NATS_MONITOR_URL is not set: it cannot be verified that the servers sync to disk before they acknowledge"
        ]
    async with asyncio.TaskGroup() as tasks:
        asked = {address: tasks.create_task(_ask(address)) for address in addresses}
    found = []
    silent = 0
    answered: dict[str, ServerSettings] = {}
    for address, task in asked.items():
        answer = task.result()
        if isinstance(answer, Unverified):
            silent += 1
            found.append(
                f"the monitoring address {address} {answer}: it cannot be verified that its server syncs to disk"
                " before it acknowledges"
            )
            continue
        answered[answer.id] = answer
        if answer.jetstream and not answer.sync_always:
            found.append(
                f"nats-server {answer.name} ({address}) syncs to disk every {answer.sync_interval_s:g} s, not before it"
                " acknowledges: what it acknowledged in that time is lost with its machine's power;"
                " set sync_interval: always in its jetstream block"
            )
    size = max((server.cluster_size for server in answered.values()), default=0)
    if (reached := len(answered) + silent) < size:
        found.append(
            f"the addresses of NATS_MONITOR_URL reach {reached} of the {size} servers of the cluster: of the others it"
            " cannot be verified that they sync to disk before they acknowledge"
        )
    return found


async def _ask(address: str) -> ServerSettings | Unverified:
    """In a thread, which ends within MONITOR_TIMEOUT_S, or twice that where the name's lookup is as slow."""
    try:
        return await asyncio.to_thread(_settings_of, address)
    except Unverified as exc:
        return exc


def _settings_of(address: str) -> ServerSettings:
    """
    Raises:
        Unverified: if the address does not answer as a nats-server does.
    """
    try:
        answer = json.loads(_get(address, "/varz"))
        jetstream = answer.get("jetstream") or {}
        config = jetstream.get("config") or {}
        return ServerSettings(
            id=str(answer["server_id"]),
            name=str(answer.get("server_name") or answer["server_id"]),
            sync_always=bool(config.get("sync_always")),
            sync_interval_s=float(config.get("sync_interval") or 0) / _NANOSECONDS,
            cluster_size=int((jetstream.get("meta") or {}).get("cluster_size") or 0),
            jetstream=bool(config),
        )
    except TimeoutError as exc:
        raise Unverified(f"does not answer within {MONITOR_TIMEOUT_S:g} s") from exc
    except OSError as exc:
        raise Unverified(f"does not answer ({exc.strerror or type(exc).__name__})") from exc
    except (http.client.HTTPException, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise Unverified("does not answer as a nats-server does") from exc


def _get(address: str, path: str) -> bytes:
    """
    Raises:
        OSError: if nobody answers; a TimeoutError if not in time.
        http.client.HTTPException, ValueError: if the answer is no page of that name, or too large.
    """
    deadline = monotonic() + MONITOR_TIMEOUT_S
    url = urlsplit(address)
    # Straight to it, whatever proxies and redirections the environment knows.
    secure = url.scheme == "https"
    connect = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = connect(url.hostname or "", url.port, timeout=MONITOR_TIMEOUT_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        if response.status != http.client.OK:
            raise ValueError(f"HTTP {response.status}")
        body = bytearray()
        while chunk := response.read1(_READ_BYTES):
            body += chunk
            if len(body) > MAX_ANSWER_BYTES:
                raise ValueError("the answer is too large")
            if monotonic() > deadline:
                raise TimeoutError
        return bytes(body)
    finally:
        connection.close()
