"""A session's conversation: the messages that it keeps."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

PAGE: Final = 200


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A part of a conversation that the store cannot read; the rest of it comes all the same."""

    key: str
    revision: int
    reason: str


class Conversation:
    """Made by `Session.conversation`."""

    def __init__(self, ask: Callable[..., Awaitable[dict[str, Any]]], session: str) -> None:
        self._ask = ask
        self._session = session

    async def messages(self, *, after: int = 0) -> AsyncGenerator[dict[str, Any] | Unreadable]:
        """Every message behind number `after`: its `number`, `role` and what else it says; a page at a time."""
        following: int | None = after
        while following is not None:
            page = await self._ask("conversation/get", session=self._session, after=following, limit=PAGE)
            for message in page["messages"]:
                yield message
            for fault in page["faults"]:
                yield Unreadable(fault["key"], fault["revision"], fault["reason"])
            following = page["after"]

    async def delete(self) -> None:
        """Forget all messages; the session goes on."""
        await self._ask("conversation/delete", session=self._session)
