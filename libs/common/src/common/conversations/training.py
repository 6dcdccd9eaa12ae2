"""What a compression dictionary is trained from: messages of stored conversations, whoever's they are, at random."""

from __future__ import annotations

import random
from typing import Final

from common import subjects
from common.bus import Bus
from common.conversations.codec import SegmentFault, messages_of
from common.conversations.dictionaries import PLACE, DictionaryStore
from common.conversations.message import pack_message
from common.conversations.segments import HEAD, Segment, Segments, UnreadableSegment
from common.log import get
from common.streams import CONVERSATIONS_BUCKET

_log = get(__name__)

SAMPLED_SEGMENTS: Final = 400
SAMPLED_BYTES: Final = 6 * 1024**2
"""About fifty times a dictionary."""
SAMPLE_BYTES: Final = 16 * 1024
"""Of one message: more of it says little about others."""


async def samples(bus: Bus, segments: Segments) -> list[bytes]:
    """Packed messages, SAMPLED_BYTES at most. What cannot be read is left out.

    Raises:
        StoreUnavailable
    """
    keys = [key for key in await bus.keys(CONVERSATIONS_BUCKET, subjects.segments_of_session("*")) if _is_segment(key)]
    found: list[bytes] = []
    size = 0
    for key in random.sample(keys, min(SAMPLED_SEGMENTS, len(keys))):
        session, _, first = key.partition(".")
        try:
            segment = await segments.read(session, int(first))
            messages = messages_of(segment.plain) if isinstance(segment, Segment) else []
        except (UnreadableSegment, SegmentFault) as exc:
            _log.warning("segment left out of the training", key=key, reason=str(exc))
            continue
        for message in messages:
            found.append(pack_message(message)[:SAMPLE_BYTES])
            size += len(found[-1])
        if size >= SAMPLED_BYTES:
            break
    return found


async def train(bus: Bus, segments: Segments, dictionaries: DictionaryStore) -> int:
    """A dictionary of what is stored, which is written with from now on. Returns its version.

    Raises:
        TooFewMessages: if there is not enough stored.
        StoreUnavailable
    """
    return await dictionaries.train(await samples(bus, segments))


def _is_segment(key: str) -> bool:
    place, _, number = key.partition(".")
    return place != PLACE and int(number) != HEAD
