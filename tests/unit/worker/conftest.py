"""Fixtures only."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from common.bus import Bus
from tests.nats_server import NatsServer
from tests.unit.common.bus_rig import open_bus


@pytest.fixture
async def bus(nats_server: NatsServer) -> AsyncIterator[Bus]:
    """A connection to a store of the test's own."""
    async with open_bus(nats_server) as opened:
        yield opened
