"""Messages brought from elsewhere into a conversation: each once, however often they are brought."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

from common.conversations.comparison import same
from common.conversations.message import Message
from common.conversations.segments import Fault
from common.errors import ConversationMoved, ConversationUnreadable
from gateway.import_errors import ConversationDiffers
from gateway.store import Store


async def import_messages(
    store: Store, session: str, messages: list[Message], *, after: int, ttl_s: float
) -> dict[str, Any]:
    """Have `messages` behind number `after`. Those that are there are compared, the others are added behind them:
    `{session, last, added}`. Other messages may follow them already; then none is missing, or they differ.

    Raises:
        ConversationMoved: if there are fewer than `after`.
        ConversationDiffers: if other messages stand in their place.
        ConversationUnreadable, ConversationStoreFull, ArtifactStoreFull, StoreUnavailable: as
            `Conversations.append()`; it may be repeated.
    """
    while True:
        last = await store.conversations.last_number(session)
        if last < after:
            raise ConversationMoved(session, after, last)
        present = messages[: last - after]
        await _require_same(store, session, present, after=after, last=last)
        missing = messages[len(present) :]
        if not missing:
            return {"session": session, "last": last, "added": 0}
        try:
            end = await store.conversations.append(session, missing, ttl_s=ttl_s, expected=last)
        except ConversationMoved as moved:
            if moved.data["last"] <= last:
                raise
            continue  # somebody brings the same, or has said something: what is there now is compared
        return {"session": session, "last": end, "added": len(missing)}


async def _require_same(store: Store, session: str, given: list[Message], *, after: int, last: int) -> None:
    seen = 0
    if not given:
        return
    async with aclosing(store.conversations.export(session, after=after)) as found:
        async for item in found:
            if isinstance(item, Fault):
                raise ConversationUnreadable(item.key, item.revision, item.reason)
            if not await same(store.bus, item.message, given[seen]):
                raise ConversationDiffers(session, item.number, last)
            seen += 1
            if seen == len(given):
                return
    raise ConversationMoved(session, after + len(given), after + seen)
