"""One read of the store for all who ask for the same at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from common.errors import StoreUnavailable

T = TypeVar("T")


class SharedRead(Generic[T]):
    """Who asks gets what a read returns that began after that: its own, or that of another one who waited with it."""

    def __init__(self, read: Callable[[], Awaitable[T]]) -> None:
        self._read = read
        self._reading = asyncio.Lock()
        self._asked = 0
        self._answered = 0
        """Up to this request: the read began after it."""
        self._answer: T | StoreUnavailable

    async def get(self) -> T:
        """
        Raises:
            StoreUnavailable: as the read does, to all who shared it.
        """
        self._asked += 1
        mine = self._asked
        async with self._reading:
            if self._answered < mine:
                covered = self._asked
                try:
                    self._answer = await self._read()
                except StoreUnavailable as exc:
                    self._answer = exc
                self._answered = covered
            if isinstance(self._answer, StoreUnavailable):
                raise self._answer
            return self._answer
