"""A session's events for one client, across whatever happens to NATS meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from common import metrics
from common.allowance import Allowance
from common.errors import StoreUnavailable
from common.feed import StoredEvent
from common.log import get
from gateway.spilled_output import SpilledOutput
from gateway.store import Store

_log = get(__name__)

RETRY_S: Final = 0.5


async def follow(store: Store, session: str, after: int, allowance: Allowance) -> AsyncGenerator[StoredEvent]:
    """Every event of the session with a number above `after`, in order, without a gap or a repeat, for ever.

    The consumer sets the pace: while it holds an event, later ones wait in a bounded buffer and then in the store.
    What is held here for it is its part of the connection's `allowance`, which it has back when this is closed.
    """
    while True:
        try:
            with allowance.share() as share:
                spilled = SpilledOutput(store, session, share)
                async with (
                    store.bus.subscribe_session(session, after, share) as feed,
                    aclosing(feed.__aiter__()) as events,
                ):
                    async for stored in events:
                        yield await spilled.filled(stored)
                        after = stored.seq
                        metrics.EVENTS_SENT.inc()
        except StoreUnavailable as exc:
            # A feed heals by itself; this is the subscribing, which needs the store to be there.
            _log.info("following waits for the store", session=session, reason=exc.message)
        await asyncio.sleep(RETRY_S)
