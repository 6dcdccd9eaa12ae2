"""The catalog and the tool listings as of now, followed in the background and read without waiting."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from common import metrics
from common.bus import Bus
from common.catalog import ServerSpec
from common.errors import ServerNotReady, StoreUnavailable, UnknownServer
from common.registry import watch_listings, watch_servers
from common.schema import ToolListing
from common.streams import SERVERS_BUCKET, TOOLS_BUCKET
from gateway.followed import Followed
from gateway.tools import Tools

NOT_LISTED: Final = "no worker has listed its tools yet"


class CatalogView:
    """Which servers there are and what they offer."""

    def __init__(self) -> None:
        self.servers = Followed[ServerSpec](SERVERS_BUCKET, self._server_changed)
        self.listings = Followed[ToolListing](TOOLS_BUCKET, self._forget_tools)
        self._tools: dict[str, Tools] = {}
        """Made on first use of a listing; dropped when it or its entry changes."""

    async def follow(self, bus: Bus) -> None:
        """Keep the view up to date until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.servers.follow(lambda: watch_servers(bus)))
            tasks.create_task(self.listings.follow(lambda: watch_listings(bus)))

    async def wait_until_read(self) -> None:
        await self.servers.is_read.wait()
        await self.listings.is_read.wait()

    def server(self, name: str) -> ServerSpec:
        """
        Raises:
            UnknownServer: if the catalog has none of that name.
            StoreUnavailable: if the catalog has not been read yet.
        """
        self._require_read()
        spec = self.servers.entries.get(name)
        if spec is None:
            raise UnknownServer(name, self.names())
        return spec

    def tools(self, name: str) -> Tools:
        """
        Raises:
            UnknownServer, StoreUnavailable: as `server()`.
            ServerNotReady: if no worker has listed its tools, or none could start a container of it.
        """
        spec = self.server(name)
        tools = self._tools.get(name)
        if tools is None:
            listing = self._current_listing(name, spec)
            if listing is None:
                raise ServerNotReady(name, NOT_LISTED)
            if listing.status == "failed":
                raise ServerNotReady(name, listing.reason)
            tools = self._tools[name] = Tools(name, listing)
        return tools

    def names(self) -> list[str]:
        """
        Raises:
            StoreUnavailable: if the catalog has not been read yet.
        """
        self._require_read()
        return sorted(self.servers.entries)

    def summary(self, name: str) -> dict[str, Any]:
        """One entry of `servers/list`; status is `ready`, `failed` or `unlisted`."""
        spec = self.server(name)
        listing = self._current_listing(name, spec)
        return {
            "name": name,
            "kind": spec.kind,
            "description": spec.description,
            "scope": spec.scope,
            "status": listing.status if listing else "unlisted",
            "reason": listing.reason if listing else NOT_LISTED,
        }

    def _current_listing(self, name: str, spec: ServerSpec) -> ToolListing | None:
        """The listing, if it was made of the entry as it is now."""
        listing = self.listings.entries.get(name)
        return listing if listing and listing.entry == spec.fingerprint else None

    def _server_changed(self, name: str) -> None:
        metrics.create_server_labels(name)
        self._forget_tools(name)

    def _forget_tools(self, name: str) -> None:
        self._tools.pop(name, None)

    def _require_read(self) -> None:
        if not (self.servers.is_read.is_set() and self.listings.is_read.is_set()):
            raise StoreUnavailable("the catalog has not been read yet")
