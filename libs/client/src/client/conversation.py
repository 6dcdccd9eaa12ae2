"""Conversations: the messages that a session keeps; and, for operators, those of all sessions."""

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


@dataclass(frozen=True, slots=True)
class Imported:
    last: int
    """Messages that the conversation has now."""
    added: int
    """How many of those that were given it did not have."""


class Conversations:
    """Those of all sessions, for operators. Made by `Session.conversations`."""

    def __init__(self, ask: Callable[..., Awaitable[dict[str, Any]]]) -> None:
        self._ask = ask

    async def import_messages(
        self, session: str, messages: list[dict[str, Any]], *, tenant: str, after: int, ttl_s: float | None = None
    ) -> Imported:
        """Bring messages into the conversation of a session of `tenant`, which is made where there is none, behind its
        first `after` ones. It may be repeated: what is there is compared and not added again.

        Raises:
            Refused: of type `conversation_differs`, where other messages stand in their place; `conversation_moved`,
                where it has fewer than `after`; `session_taken`, where the session is another tenant's.
        """
        params: dict[str, Any] = {"session": session, "tenant": tenant, "messages": messages, "after": after}
        if ttl_s is not None:
            params["ttl_s"] = ttl_s
        told = await self._ask("conversations/import", **params)
        return Imported(told["last"], told["added"])
