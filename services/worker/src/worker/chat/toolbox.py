"""The tools that a session's turns may call, under names that are the model's: one for each tool of each server."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from common.bus import Bus
from common.catalog import ServerSpec
from common.log import get
from common.registry import watch_listings, watch_servers
from common.schema import SessionRecord, ToolListing
from worker.models.contract import ToolOffer

_log = get(__name__)

MAX_TOOLS: Final = 128
"""OpenAI takes no more functions in one request."""
MAX_NAME_CHARS: Final = 64
MAX_DESCRIPTION_CHARS: Final = 4_000
_UNSUITABLE: Final = re.compile(r"[^A-Za-z0-9_-]")


@dataclass(frozen=True)
class ChatTool:
    server: str
    tool: str
    spec: ServerSpec
    offer: ToolOffer

    @property
    def asks(self) -> bool:
        return self.spec.asks(self.tool)


class Toolbox:
    """By the names that the model is told."""

    def __init__(self, tools: Iterable[ChatTool]) -> None:
        self._by_name = {tool.offer.name: tool for tool in tools}

    @property
    def offers(self) -> list[ToolOffer]:
        return [tool.offer for tool in self._by_name.values()]

    def find(self, name: str) -> ChatTool | None:
        return self._by_name.get(name)


async def read_toolbox(bus: Bus, record: SessionRecord) -> Toolbox:
    """What the catalog and the workers' listings offer now, as far as the session allows it.

    Raises:
        StoreUnavailable
    """
    servers: dict[str, ServerSpec] = {}
    async with aclosing(watch_servers(bus)) as specs:
        async for entry in specs:
            if entry is None:
                break
            if entry[1] is not None:
                servers[entry[0]] = entry[1]
    listings: dict[str, ToolListing] = {}
    async with aclosing(watch_listings(bus)) as found:
        async for item in found:
            if item is None:
                break
            if item[1] is not None:
                listings[item[0]] = item[1]
    return toolbox(servers, listings, record)


def toolbox(servers: Mapping[str, ServerSpec], listings: Mapping[str, ToolListing], record: SessionRecord) -> Toolbox:
    """Pure: the same catalog gives the same names, in the same order."""
    tools: list[ChatTool] = []
    taken: set[str] = set()
    for server, spec in sorted(servers.items()):
        listing = listings.get(server)
        if listing is None or listing.status != "ready" or listing.entry != spec.fingerprint:
            continue
        for listed in listing.tools:
            tool = listed.get("name")
            if not isinstance(tool, str) or not record.allows(server, tool):
                continue
            name = _unique_name(server, tool, taken)
            taken.add(name)
            tools.append(ChatTool(server, tool, spec, _offer(name, listed)))
    if len(tools) > MAX_TOOLS:
        _log.warning("tools left out of a turn", offered=MAX_TOOLS, left_out=len(tools) - MAX_TOOLS)
    return Toolbox(tools[:MAX_TOOLS])


def _unique_name(server: str, tool: str, taken: set[str]) -> str:
    """`<server>__<tool>`; where that holds what a provider does not take, is too long or taken, a digest ends it."""
    plain = f"{server}__{tool}"
    name = _UNSUITABLE.sub("_", plain)
    if name == plain and len(name) <= MAX_NAME_CHARS and name not in taken:
        return name
    digest = hashlib.sha256(f"{server}/{tool}".encode("utf-8", "replace")).hexdigest()[:8]
    return f"{name[: MAX_NAME_CHARS - 9]}_{digest}"


def _offer(name: str, listed: dict[str, Any]) -> ToolOffer:
    description = str(listed.get("description") or listed.get("title") or "")
    schema = listed.get("inputSchema")
    if not isinstance(schema, dict) or schema.get("type") != "object":
        schema = {"type": "object", "properties": {}}
    return ToolOffer(name, description[:MAX_DESCRIPTION_CHARS], schema)
