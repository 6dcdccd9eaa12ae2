"""Fixtures only."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.nats_server import NatsServer
from tests.unit.worker.chat.rig import ChatRig, chat_rig


@pytest.fixture
async def rig(nats_server: NatsServer) -> AsyncIterator[ChatRig]:
    """An open session, one server `math` that offers `add`, and no worker yet."""
    async with chat_rig(nats_server) as made:
        await made.open_session()
        await made.offer("math")
        yield made
