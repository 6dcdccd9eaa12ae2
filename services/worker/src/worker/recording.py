"""What a direct tool call leaves in the conversation of a session that asks for it: one message, once."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any, Final

from common.bus import Bus
from common.conversations.message import Message
from common.conversations.reading import Numbered
from common.conversations.repository import Conversations
from common.errors import ArtifactStoreFull, ConversationStoreFull, ConversationUnreadable, UndecodableMessage
from common.log import get
from common.schema import Event, Job, SessionRecord
from common.streams import SESSIONS_BUCKET

_log = get(__name__)

LOOKED_BACK: Final = 200
"""Messages among which one that is already there is looked for."""


class Recording:
    def __init__(self, bus: Bus, conversations: Conversations) -> None:
        self._bus = bus
        self._conversations = conversations

    async def record(self, job: Job, *, again: bool) -> None:
        """Add the message of a job that has ended, unless it is there: it may be, where the job is delivered `again`.

        Raises:
            StoreUnavailable: the job has to be delivered again.
        """
        newest = await self._bus.last_event(job.session, job.id)
        entry = await self._bus.get(SESSIONS_BUCKET, job.session)
        if newest is None or not newest.event.terminal or entry.value is None:
            return  # past the resume window, or the session was closed: its conversation is gone
        ttl_s = SessionRecord.decode(entry.value).conversation_ttl_s or self._bus.limits.session_ttl_s
        try:
            if again and await self._is_there(job):
                return
            await self._conversations.append(job.session, [message_of(job, newest.event)], ttl_s=ttl_s)
        except (ConversationUnreadable, ConversationStoreFull, ArtifactStoreFull, UndecodableMessage) as exc:
            # Trying again would not help, and the job itself has ended well.
            _log.error("call not recorded", session=job.session, job=job.id, reason=exc.message)

    async def _is_there(self, job: Job) -> bool:
        last = await self._conversations.last_number(job.session)
        async with aclosing(self._conversations.export(job.session, after=max(0, last - LOOKED_BACK))) as found:
            async for item in found:
                if isinstance(item, Numbered) and item.message.get("job") == job.id:
                    return True
        return False


def message_of(job: Job, end: Event) -> Message:
    """A call that has ended, as a message."""
    result: dict[str, Any] = end.data.get("result") or {}
    message: Message = {
        "role": "tool",
        "job": job.id,
        "server": job.server,
        "tool": job.tool,
        "arguments": job.arguments,
        "outcome": end.data.get("outcome"),
        "content": result.get("content", []),
        "time_ms": end.time_ms,
    }
    for name in ("structuredContent", "isError"):
        if name in result:
            message[name] = result[name]
    for name in ("error", "output"):
        if end.data.get(name):
            message[name] = end.data[name]
    return message
