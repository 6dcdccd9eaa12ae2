"""The catalog and the tool listings as all services see them: stored in KV buckets, watched.

`apply()` writes a catalog; `watch_servers()` and `watch_listings()` follow both, so that a server is added,
changed or removed without a restart of anything.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from pydantic import ValidationError

from common.bus import Bus
from common.catalog import Catalog, ServerSpec
from common.errors import UndecodableMessage
from common.log import get
from common.schema import ToolListing
from common.streams import SERVERS_BUCKET, TOOLS_BUCKET

_log = get(__name__)


async def apply(bus: Bus, catalog: Catalog) -> None:
    """Make the `servers` bucket and the durable consumers say what `catalog` says.

    Consumers first: a job that is accepted for a server always has a queue that is read.
    """
    present: dict[str, bytes] = {}
    async with aclosing(bus.watch(SERVERS_BUCKET)) as entries:
        async for entry in entries:
            if entry is None:
                break
            if entry.value is not None:
                present[entry.key] = entry.value
    for name, spec in catalog.items():
        value = spec.model_dump_json(exclude_defaults=True).encode()
        await bus.ensure_server(name, spec.concurrency.cluster)
        if present.get(name) != value:
            await bus.put(SERVERS_BUCKET, name, value)
            _log.info("server applied", server=name)
    for name in present.keys() - catalog.keys():
        await bus.delete(SERVERS_BUCKET, name)
        await bus.remove_server(name)
        _log.info("server removed", server=name)


async def watch_servers(bus: Bus) -> AsyncGenerator[tuple[str, ServerSpec | None] | None]:
    """Each server of the catalog, then None once, then each change; a server without a spec was removed.

    An entry that this version cannot read is logged and treated as removed.
    """
    async with aclosing(bus.watch(SERVERS_BUCKET)) as entries:
        async for entry in entries:
            if entry is None:
                yield None
                continue
            spec = None
            if entry.value is not None:
                try:
                    spec = ServerSpec.model_validate_json(entry.value)
                except ValidationError as exc:
                    _log.error("catalog entry cannot be used", server=entry.key, error=str(exc))
            yield entry.key, spec


async def watch_listings(bus: Bus) -> AsyncGenerator[tuple[str, ToolListing | None] | None]:
    """Each server's tool listing, then None once, then each change."""
    async with aclosing(bus.watch(TOOLS_BUCKET)) as entries:
        async for entry in entries:
            if entry is None:
                yield None
                continue
            listing = None
            if entry.value is not None:
                try:
                    listing = ToolListing.decode(entry.value)
                except UndecodableMessage as exc:
                    _log.error("tool listing cannot be used", server=entry.key, reason=exc.message)
            yield entry.key, listing


async def publish_listing(bus: Bus, server: str, listing: ToolListing) -> None:
    """Tell the gateways what a server offers, or why it does not work."""
    await bus.put(TOOLS_BUCKET, server, listing.encode())
