"""A barrier on a NATS connection."""

from __future__ import annotations

from common.bus import Bus


async def settled(bus: Bus) -> None:
    """Returns when the server has all that this connection sent, subscriptions among it.

    A request goes the way of everything else. nats-py's own `flush` does not: its PING overtakes what waits to be
    written (2.16).
    """
    await bus.stored_range()
