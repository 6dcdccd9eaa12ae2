"""Does a worker live? Asked of the worker itself, because what it owns may be taken from it if it does not."""

from __future__ import annotations

from common import subjects
from common.bus import Bus
from common.errors import StoreUnavailable

ANSWER_WITHIN_S = 1.0


async def answers(bus: Bus, worker: str) -> bool:
    """False if it is not connected to NATS, or is and says nothing.

    Raises:
        StoreUnavailable: if it is this process that is not connected.
    """
    try:
        return await bus.request(subjects.alive(worker), b"", ANSWER_WITHIN_S) is not None
    except StoreUnavailable:
        if not bus.connected:
            raise
        return False
