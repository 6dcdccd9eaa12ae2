"""A session's conversation as clients see it: as values, and as Markdown."""

from __future__ import annotations

import base64
import json
from collections.abc import Collection
from dataclasses import asdict
from typing import Any, Final

from common.conversations.message import Message, Part
from common.errors import OperatorsOnly
from common.log import get
from gateway.conversation_import import import_messages
from gateway.store import Store

_log = get(__name__)

DEFAULT_MESSAGES: Final = 100
MAX_MESSAGES: Final = 1_000
MAX_CONVERSATION_TTL_S: Final = 10 * 365 * 86_400.0


class Conversation:
    """Callers have made sure that the session is theirs."""

    def __init__(self, store: Store, operators: Collection[str]) -> None:
        self._store = store
        self._operators = frozenset(operators)

    async def get(self, session: str, *, after: int, limit: int) -> dict[str, Any]:
        """A page: `{session, messages: [{number, …}], faults: [{key, revision, reason}], after}`; `after` goes on, and
        is None where there is nothing more.

        Raises:
            StoreUnavailable
        """
        page = await self._store.conversations.messages(session, after=after, limit=limit)
        numbered = [(each.number, each.message) for each in page.messages]
        # A message that came from elsewhere may have a field `number` of its own: the place in here is told.
        return {
            "session": session,
            "messages": [{"number": n} | _shown(message) | {"number": n} for n, message in numbered],
            "faults": [fault.as_dict() for fault in page.faults],
            "after": page.messages[-1].number if page.more else None,
        }

    async def delete(self, session: str) -> dict[str, Any]:
        """
        Raises:
            StoreUnavailable: it may be repeated.
        """
        await self._store.conversations.delete(session)
        return {"session": session}

    async def train_dictionary(self, tenant: str) -> dict[str, Any]:
        """
        Raises:
            OperatorsOnly: if the tenant is none: the dictionary holds pieces of everybody's messages.
            TooFewMessages, StoreUnavailable: as `Conversations.train_dictionary()`.
        """
        self.require_operator(tenant, "conversations/train_dictionary")
        return {"version": await self._store.conversations.train_dictionary()}

    async def bring(
        self, session: str, messages: list[Message], *, after: int, ttl_s: float | None, by: str
    ) -> dict[str, Any]:
        """Messages from elsewhere, behind number `after`; without `ttl_s` kept as long as a session. `by` is the
        operator.

        Raises:
            ServiceError: as `import_messages()`.
        """
        kept_s = ttl_s or self._store.bus.limits.session_ttl_s
        told = await import_messages(self._store, session, messages, after=after, ttl_s=kept_s)
        if told["added"]:
            _log.info("messages were imported", session=session, added=told["added"], last=told["last"], by=by)
        return told

    def require_operator(self, tenant: str, method: str) -> None:
        """
        Raises:
            OperatorsOnly: if the tenant is none.
        """
        if tenant not in self._operators:
            raise OperatorsOnly(method)


def _shown(value: Any) -> Any:
    """`value` in what every frame can say: bytes as base64, a part by what is known of it."""
    if isinstance(value, dict):
        return {str(key): _shown(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shown(item) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return {"part": asdict(value)} if isinstance(value, Part) else value


def as_markdown(page: dict[str, Any]) -> str:
    """A page of `Conversation.get()` for people: a heading for each message, then what it says."""
    lines = [f"# Conversation {page['session']}", ""]
    for message in page["messages"]:
        lines += [f"## {message['number']}. {_title(message)}", "", *_body(message), ""]
    lines += [
        f"> **Cannot be read:** {each['key']} at revision {each['revision']}: {each['reason']}\n"
        for each in page["faults"]
    ]
    if page["after"] is not None:
        lines += [f"> There is more: `after={page['after']}`", ""]
    return "\n".join(lines)


def _title(message: dict[str, Any]) -> str:
    role = str(message.get("role", "message"))
    if role != "tool":
        return role
    return f"tool {message.get('server', '')}/{message.get('tool', '')}: {message.get('outcome', '')}"


def _body(message: dict[str, Any]) -> list[str]:
    lines = _fenced(_arguments(message)) if message.get("arguments") else []
    content = message.get("content", "")
    for part in content if isinstance(content, list) else [{"type": "text", "text": content}]:
        text = part.get("text") if isinstance(part, dict) else part
        if isinstance(text, dict) and "part" in text:
            lines += [f"*{text['part']['size']} bytes, which begin:*", "", *_fenced(text["part"]["start"])]
        elif isinstance(text, str):
            lines += _fenced(text) if message.get("role") == "tool" else [text, ""]
        else:
            lines += [f"*{part.get('type', 'part') if isinstance(part, dict) else 'part'}*", ""]
    for call in message.get("calls") or ():
        lines += [f"*calls {call.get('server')}/{call.get('tool')}:*", "", *_fenced(_arguments(call))]
    return lines


def _arguments(of: dict[str, Any]) -> str:
    return json.dumps(of["arguments"], ensure_ascii=False)


def _fenced(text: str) -> list[str]:
    """As it is, whatever is in it: the fence is longer than any in the text."""
    longest = max((len(run) for run in text.replace("`", "\0").split() if set(run) == {"\0"}), default=0)
    fence = "`" * max(3, longest + 1)
    return [fence, text, fence, ""]
