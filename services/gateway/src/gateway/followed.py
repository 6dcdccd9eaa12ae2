"""The entries of one bucket, kept up to date in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final, Generic, TypeVar

from common.errors import StoreUnavailable
from common.log import get

_log = get(__name__)

WATCH_RETRY_S: Final = 1.0

T = TypeVar("T")
Updates = AsyncGenerator[tuple[str, T | None] | None]
"""Each entry, then None, then each change; an entry without a value was removed (`common.registry`)."""


class Followed(Generic[T]):
    """Empty until it has been read once, which `is_read` tells."""

    def __init__(self, bucket: str, changed: Callable[[str], None]) -> None:
        self.entries: dict[str, T] = {}
        self.is_read = asyncio.Event()
        self._bucket = bucket
        self._changed = changed

    def put(self, name: str, value: T | None) -> None:
        if value is None:
            self.entries.pop(name, None)
        else:
            self.entries[name] = value
        self._changed(name)

    def complete(self, present: set[str]) -> None:
        """All that the bucket has was put: what it no longer has was removed while nobody watched."""
        for name in self.entries.keys() - present:
            self.put(name, None)
        self.is_read.set()

    async def follow(self, watch: Callable[[], Updates[T]]) -> None:
        """Put every update until cancelled; begins anew, after a pause, where the store does not answer."""
        while True:
            try:
                async with aclosing(watch()) as updates:
                    await self._put_all(updates)
                reason = "the watch ended"
            except StoreUnavailable as exc:
                reason = exc.message
            _log.warning("watching again", bucket=self._bucket, reason=reason)
            await asyncio.sleep(WATCH_RETRY_S)

    async def _put_all(self, updates: Updates[T]) -> None:
        present: set[str] = set()
        async for update in updates:
            if update is None:
                self.complete(present)
                continue
            name, value = update
            present.add(name)
            self.put(name, value)
