"""Stored messages as the model is told them. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from common.conversations.message import Message
from worker.models.contract import AssistantMessage, ModelMessage, ToolCall, ToolMessage, UserMessage

NO_RESULT: Final = "no result: the turn ended before this call did"
UNKNOWN: Final = (
    "The outcome of this call is unknown: it had begun when its worker or its server was lost. It may or may not have"
    " taken effect. Find out before you repeat it, or tell the user."
)


def told(messages: Sequence[Message], *, result_chars: int, history_chars: int) -> list[ModelMessage]:
    """Every call with its result behind it, beginning with a user's message; the oldest turns are left out where all
    are too much."""
    results = {str(message["job"]): message for message in messages if _is_result(message)}
    found: list[ModelMessage] = []
    for message in messages:
        match message.get("role"):
            case "assistant":
                found += _of_assistant(message, results, result_chars)
            case "tool" if _is_result(message):
                continue  # stands behind its call
            case "tool":
                found.append(UserMessage(_of_direct_call(message, result_chars)))
            case _:
                found.append(UserMessage(text_of(message.get("content"))))
    return _newest(found, history_chars)


def _is_result(message: Message) -> bool:
    return message.get("role") == "tool" and "turn" in message and "job" in message


def _of_assistant(message: Message, results: dict[str, Message], result_chars: int) -> list[ModelMessage]:
    calls = [
        ToolCall(str(call["job"]), str(call["name"]), call.get("arguments"), str(call.get("written", "")))
        for call in message.get("calls") or ()
        if isinstance(call, dict) and call.keys() >= {"job", "name"}  # others came from elsewhere
    ]
    found: list[ModelMessage] = [AssistantMessage(text_of(message.get("content")), tuple(calls))]
    for call in calls:
        result = results.get(call.id)
        if result is None:
            found.append(ToolMessage(call.id, NO_RESULT, failed=True))
        else:
            failed = result.get("outcome") != "succeeded"
            found.append(ToolMessage(call.id, result_text(result, result_chars), failed))
    return found


def _of_direct_call(message: Message, result_chars: int) -> str:
    if "server" not in message:  # of a conversation that came from elsewhere
        return f"[A tool has answered]\n{result_text(message, result_chars)}"
    what = f"{message['server']}/{message.get('tool')}"
    arguments = json.dumps(message.get("arguments", {}), ensure_ascii=False, default=str)
    return f"[The user has called {what} with {arguments[:result_chars]}]\n{result_text(message, result_chars)}"


def result_text(message: Message, limit: int) -> str:
    """What a call came to, cut to about `limit` characters with a note that says where the whole is."""
    text = text_of(message.get("content"))
    error = message.get("error")
    if message.get("outcome") == "outcome_unknown":
        text = f"{UNKNOWN}\n{_said(error)}"
    elif isinstance(error, dict):
        text = f"{_said(error)}\n{text}".rstrip()
    elif message.get("outcome") not in (None, "succeeded", "failed") and not text:
        text = f"the call was {message.get('outcome')}"
    if len(text) > limit:
        whole = f"{len(text)} characters"
        text = f"{text[:limit]}\n[cut: this is the beginning of {whole}; the whole is at {message.get('whole', '')}]"
    return text or "(nothing)"


def _said(error: Any) -> str:
    return f"{error.get('type')}: {error.get('message')}" if isinstance(error, dict) else ""


def text_of(content: Any) -> str:
    """The text of a message's content; what is no text is named."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return "" if content is None else str(content)
    return "\n".join(_part(part) for part in content)


def _part(part: Any) -> str:
    if not isinstance(part, dict):
        return str(part)
    match part.get("type"):
        case "text":
            return str(part.get("text", ""))
        case "resource_link":
            return f"[{part.get('name', 'resource')}: {part.get('uri')}, {part.get('size', '?')} bytes]"
        case "resource" if isinstance(part.get("resource"), dict) and "text" in part["resource"]:
            return str(part["resource"]["text"])
        case kind:
            return f"[{kind or 'part'} {part.get('mimeType', '')}: not shown to the model]"


def _newest(messages: list[ModelMessage], limit: int) -> list[ModelMessage]:
    """From a user's message on, as far back as `limit` allows, and the newest user's message whatever its size."""
    size, start = 0, len(messages)
    for index in range(len(messages) - 1, -1, -1):
        size += _chars(messages[index])
        if size > limit and start < len(messages):
            break
        if isinstance(messages[index], UserMessage):
            start = index
    return messages[start:]


def _chars(message: ModelMessage) -> int:
    if isinstance(message, AssistantMessage):
        return len(message.text) + sum(len(str(call.arguments)) for call in message.calls)
    return len(message.text)
