"""The way to NATS: there is none at first, then there is one, and it may be away for a while."""

from __future__ import annotations

import asyncio
from typing import Final

from common.bus import Bus, connect
from common.conversations.repository import Conversations
from common.durability import Durability
from common.errors import StoreUnavailable
from common.settings import BusSettings
from gateway.catalog_view import CatalogView

CONNECTING: Final = "connecting to NATS"
RECONNECTING: Final = "the connection to NATS is lost, reconnecting"


class Store:
    """Hands out the bus, or says at once why there is none."""

    def __init__(self, settings: BusSettings) -> None:
        self.durability = Durability(settings)
        self._settings = settings
        self._bus: Bus | None = None
        self._conversations: Conversations | None = None

    @property
    def fault(self) -> str | None:
        """Why the store cannot be used now; None if it can."""
        if self._bus is None:
            return CONNECTING
        return None if self._bus.connected else RECONNECTING

    @property
    def bus(self) -> Bus:
        """
        Raises:
            StoreUnavailable: if NATS is away: a request is better refused now than after its timeout.
        """
        if self._bus is None or not self._bus.connected:
            raise StoreUnavailable(self.fault or CONNECTING)
        return self._bus

    @property
    def conversations(self) -> Conversations:
        """
        Raises:
            StoreUnavailable: as `bus`.
        """
        if self._conversations is None or self.fault:
            raise StoreUnavailable(self.fault or CONNECTING)
        return self._conversations

    async def hold(self, catalog: CatalogView) -> None:
        """Connect, for as long as it takes, and keep the connection and the catalog view until cancelled.

        Raises:
            StreamConflict, NotClustered: if the streams cannot be as the settings ask: nothing here can work then.
        """
        async with connect(self._settings, "gateway") as bus:
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(catalog.follow(bus))
                    tasks.create_task(self.durability.watch(bus))
                    conversations = Conversations(bus, compress=self._settings.enable_conversation_compression)
                    tasks.create_task(conversations.run())
                    await catalog.wait_until_read()
                    self._conversations = conversations
                    self._bus = bus
            finally:
                self._bus = self._conversations = None
