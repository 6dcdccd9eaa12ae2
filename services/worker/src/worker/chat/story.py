"""The conversation of a turn's session: what the turn finds there, and what it adds, each message once.

A turn's own messages are told apart by what they are (its question, its answer number n, the result of that call), so
a turn that is delivered again finds what it has stored, whoever had stored it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final, TypeVar

from common.bus import Bus
from common.conversations.message import Message, Part
from common.conversations.reading import Numbered
from common.conversations.repository import Conversations
from common.errors import (
    ArtifactStoreFull,
    ConversationMoved,
    ConversationStoreFull,
    ConversationUnreadable,
    ServiceError,
    StoreUnavailable,
)
from common.log import get
from common.object_store import PartLost
from common.output import estimated_bytes
from common.schema import Job, SessionRecord, now_ms
from common.streams import SESSIONS_BUCKET
from worker.chat.errors import ConversationUnusable, SessionClosed

_log = get(__name__)

LOOKED_BACK: Final = 1_000
"""Messages before the turn that are read at most."""
HELD_BYTES: Final = 4 * 1024**2
"""Memory of the messages before the turn that are held."""
RETRY_MIN_S: Final = 0.1
RETRY_MAX_S: Final = 5.0

T = TypeVar("T")


async def patiently(what: str, do: Callable[[], Awaitable[T]]) -> T:
    """Wait out a store that is away: the turn's own timeout bounds it."""
    wait_s = RETRY_MIN_S
    while True:
        try:
            return await do()
        except StoreUnavailable as exc:
            _log.warning("a turn waits for the store", what=what, reason=exc.message)
        await asyncio.sleep(wait_s * (0.5 + random.random()))
        wait_s = min(wait_s * 2, RETRY_MAX_S)


async def session_record(bus: Bus, session: str) -> SessionRecord:
    """
    Raises:
        SessionClosed: if it is not known (any more).
    """
    entry = await patiently("reading its session", lambda: bus.get(SESSIONS_BUCKET, session))
    if entry.value is None:
        raise SessionClosed
    return SessionRecord.decode(entry.value)


class Story:
    """Made for one attempt of a turn; `load()` first.

    Every method raises SessionClosed and ConversationUnusable, and waits out a store that is away.
    """

    def __init__(self, bus: Bus, conversations: Conversations, turn: Job, result_chars: int) -> None:
        self._bus = bus
        self._conversations = conversations
        self._turn = turn
        self._result_chars = result_chars
        self._last = 0
        self.messages: list[Message] = []
        """In order: those before the turn as far as they are held, and all of the turn."""

    # --- what is there --------------------------------------------------------------------------------

    async def load(self) -> None:
        self._last = await self._usable(lambda: self._conversations.last_number(self._turn.session))
        self._last = max(0, self._last - LOOKED_BACK)
        await patiently("reading its conversation", self._read_on)

    async def _read_on(self) -> None:
        """Take in what stands behind what is known."""
        async with aclosing(self._conversations.export(self._turn.session, after=self._last)) as found:
            async for item in found:
                if not isinstance(item, Numbered):
                    _log.warning("part of a conversation is not told to the model", **item.as_dict())
                    continue
                self.messages.append(await self._with_parts(item.message))
                self._last = item.number
        self._forget_oldest()

    def _forget_oldest(self) -> None:
        size = 0
        for index in range(len(self.messages) - 1, -1, -1):
            size += estimated_bytes(self.messages[index])
            if size > HELD_BYTES and not self._is_ours(self.messages[index]):
                del self.messages[: index + 1]
                return

    async def _with_parts(self, value: Any) -> Any:
        """`value` with texts in the place of its large parts, as much of them as a model is told."""
        if isinstance(value, dict):
            return {key: await self._with_parts(item) for key, item in value.items()}
        if isinstance(value, list):
            return [await self._with_parts(item) for item in value]
        if isinstance(value, Part):
            return await self._beginning(value)
        return value

    async def _beginning(self, part: Part) -> str:
        rest = f"… [{part.size} bytes]"
        if part.form != "text":
            return rest
        try:
            info = await self._bus.object_info(part.object)
            if info is None:
                return part.start + rest
            end = min(info.size, self._result_chars * 4)
            data = b"".join([piece async for piece in self._bus.read_object(info, 0, end)])
        except PartLost:
            return part.start + rest
        return data.decode("utf-8", "ignore")

    # --- the turn's own -------------------------------------------------------------------------------

    def _is_ours(self, message: Message) -> bool:
        return self._turn.id in (message.get("turn"), message.get("job"))

    @property
    def asked(self) -> bool:
        """The user's message is stored."""
        return any(message.get("role") == "user" and self._is_ours(message) for message in self.messages)

    @property
    def answers(self) -> list[Message]:
        """What the model has said in this turn, in order."""
        return [message for message in self.messages if message.get("role") == "assistant" and self._is_ours(message)]

    def result_of(self, call: str) -> Message | None:
        """The result of a call of this turn, once it is stored."""
        for message in self.messages:
            if message.get("role") == "tool" and message.get("job") == call and self._is_ours(message):
                return message
        return None

    async def add(self, message: Message) -> Message:
        """Store a message of the turn, unless its like is stored: that one is returned then."""
        message = {**message, "turn": self._turn.id, "time_ms": now_ms()}
        like = _identity(message)
        while True:
            stored = next((each for each in self.messages if _identity(each) == like), None)
            if stored is not None:
                return stored
            record = await session_record(self._bus, self._turn.session)
            ttl_s = record.conversation_ttl_s or self._bus.limits.session_ttl_s
            try:
                self._last = await self._conversations.append(
                    self._turn.session, [message], ttl_s=ttl_s, expected=self._last
                )
            except ConversationMoved as exc:
                # Somebody else has added to it; or taken back, and what was before is the turn's to remember.
                self._last = min(self._last, exc.data["last"])
                await patiently("reading its conversation", self._read_on)
            except StoreUnavailable as exc:
                # It may hold the message or not: that is looked at.
                _log.warning("a turn waits for the store", what="adding a message", reason=exc.message)
                await asyncio.sleep(RETRY_MIN_S)
                await patiently("reading its conversation", self._read_on)
            except (ConversationUnreadable, ConversationStoreFull, ArtifactStoreFull) as exc:
                raise ConversationUnusable(exc) from exc
            else:
                self.messages.append(message)
                return message

    async def _usable(self, do: Callable[[], Awaitable[T]]) -> T:
        try:
            return await patiently("reading its conversation", do)
        except (ConversationUnreadable, ConversationStoreFull, ArtifactStoreFull) as exc:
            failure: ServiceError = exc
        raise ConversationUnusable(failure)


def _identity(message: Message) -> tuple[Any, ...]:
    """What a message of a turn is, whatever it says."""
    return message.get("turn"), message.get("role"), message.get("job"), message.get("step")
