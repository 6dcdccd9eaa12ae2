"""Whether a stored message says what another one does, though large parts of it are objects in the store."""

from __future__ import annotations

import hashlib
from typing import Any

from common.bus import Bus
from common.conversations.message import Message, Part, pack_message, unpacked
from common.conversations.parts import content_of
from common.object_store import PartLost


async def same(bus: Bus, stored: Message, given: Message) -> bool:
    """Is `given`, once it is stored, what `stored` is? What was kept as one part, has large parts itself and is past
    its lifetime cannot be compared any more, and counts as another message.

    Raises:
        StoreUnavailable: if a part has to be looked at, and the store does not answer.
    """
    packed = pack_message(given)
    whole = stored.get("packed")
    if not isinstance(whole, Part):
        return _same(stored, unpacked(packed))
    if whole.sha256 == hashlib.sha256(packed).hexdigest():
        return True
    # Large parts in it have names of their own at each writing, and so the whole has another digest.
    try:
        content = await content_of(bus, whole)
    except PartLost:
        return False
    return isinstance(content, bytes) and _same(unpacked(content), unpacked(packed))


def _same(stored: Any, given: Any) -> bool:
    if isinstance(stored, Part):
        return isinstance(given, str) and stored.sha256 == hashlib.sha256(given.encode("utf-8", "replace")).hexdigest()
    if isinstance(stored, dict):
        if not isinstance(given, dict) or stored.keys() != given.keys():
            return False
        return all(_same(value, given[key]) for key, value in stored.items())
    if isinstance(stored, list):
        if not isinstance(given, list) or len(stored) != len(given):
            return False
        return all(_same(*pair) for pair in zip(stored, given, strict=True))
    return type(stored) is type(given) and bool(stored == given)
