"""The compression dictionaries: trained from stored conversations, kept beside them, never deleted."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import zstandard

from common import subjects
from common.bus import Bus
from common.errors import Fenced, TooFewMessages
from common.streams import CONVERSATIONS_BUCKET

PLACE: Final = "_dictionary"
"""Where a session's id stands in the key of a segment. No session has it: theirs begin with a letter or a digit."""
MAX_DICTIONARY_BYTES: Final = 112 * 1024
LOOK_AGAIN_S: Final = 30.0
"""How long a dictionary that another process has trained may be unknown to this one as the one to write with."""
MIN_SAMPLES: Final = 16
"""zstd makes no dictionary of less."""


class DictionaryStore:
    """Those that this process knows, by version."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.known: dict[int, zstandard.ZstdCompressionDict] = {}
        self._looked_at = -LOOK_AGAIN_S

    async def newest(self) -> zstandard.ZstdCompressionDict | None:
        """What is written with; None while none was trained."""
        now = asyncio.get_running_loop().time()
        if now - self._looked_at >= LOOK_AGAIN_S:
            self._looked_at = now
            versions = await self.versions()
            if versions:
                await self.load(versions[-1])
        return self.known[max(self.known)] if self.known else None

    async def versions(self) -> list[int]:
        keys = await self._bus.keys(CONVERSATIONS_BUCKET, subjects.segments_of_session(PLACE))
        return sorted(int(key.rsplit(".", 1)[-1]) for key in keys)

    async def load(self, version: int) -> None:
        """Have it among `known`, if the store has it."""
        if version not in self.known:
            entry = await self._bus.get(CONVERSATIONS_BUCKET, _key(version))
            if entry.value is not None:
                self.known[version] = zstandard.ZstdCompressionDict(entry.value)

    async def train(self, samples: Sequence[bytes]) -> int:
        """Make a dictionary of messages, store it, write with it from now on. Returns its version. Takes seconds of a
        thread.

        Raises:
            TooFewMessages
            StoreUnavailable
        """
        if len(samples) < MIN_SAMPLES:
            raise TooFewMessages(f"{len(samples)} are stored, and it needs {MIN_SAMPLES} at least")
        while True:
            version = max(await self.versions(), default=0) + 1
            try:
                trained = await asyncio.to_thread(
                    zstandard.train_dictionary, MAX_DICTIONARY_BYTES, list(samples), dict_id=version, level=19
                )
            except zstandard.ZstdError as exc:
                raise TooFewMessages(f"what is stored is too little: {exc}") from exc
            try:
                await self._bus.replace(CONVERSATIONS_BUCKET, _key(version), trained.as_bytes(), 0)
            except Fenced:
                continue  # another process has just made this version
            self.known[version] = trained
            return version


def _key(version: int) -> str:
    return subjects.segment_key(PLACE, f"{version:010d}")
