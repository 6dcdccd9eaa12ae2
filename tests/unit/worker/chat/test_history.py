"""What the model is told of a conversation."""

from __future__ import annotations

from typing import Any

import pytest

from common.conversations.message import Message
from worker.chat.history import NO_RESULT, result_text, told
from worker.models.contract import AssistantMessage, ModelMessage, ToolCall, ToolMessage, UserMessage


def user(text: str) -> Message:
    return {"role": "user", "turn": "t", "content": text}


def assistant(text: str, *calls: str) -> Message:
    planned = [{"job": call, "name": f"math__{call}", "arguments": {}} for call in calls]
    return {"role": "assistant", "turn": "t", "step": 1, "content": text, "calls": planned}


def result(call: str, text: str = "ok", **fields: Any) -> Message:
    content = [{"type": "text", "text": text}]
    return {"role": "tool", "turn": "t", "job": call, "outcome": "succeeded", "content": content, **fields}


def history(*messages: Message, chars: int = 10_000) -> list[ModelMessage]:
    return told(messages, result_chars=1_000, history_chars=chars)


def test_results_stand_behind_their_call_in_the_order_of_the_calls() -> None:
    """Providers refuse any other order."""
    found = history(user("go"), assistant("", "a", "b"), result("b", "2"), result("a", "1"), assistant("done"))

    assert found == [
        UserMessage("go"),
        AssistantMessage("", (ToolCall("a", "math__a", {}), ToolCall("b", "math__b", {}))),
        ToolMessage("a", "1", failed=False),
        ToolMessage("b", "2", failed=False),
        AssistantMessage("done"),
    ]


def test_a_call_without_a_result_is_told_to_have_none() -> None:
    """Its turn was cancelled, say; a call without a result is refused by providers."""
    found = history(user("go"), assistant("", "a"), user("and now?"))

    assert found[2] == ToolMessage("a", NO_RESULT, failed=True)
    assert found[3] == UserMessage("and now?")


def test_a_call_that_the_user_made_is_told_as_the_users() -> None:
    """The model had no part in it."""
    by_hand = {"role": "tool", "job": "j", "server": "time", "tool": "now", "arguments": {"tz": "UTC"}}
    [found] = history({**by_hand, "outcome": "succeeded", "content": [{"type": "text", "text": "noon"}]})

    assert found == UserMessage('[The user has called time/now with {"tz": "UTC"}]\nnoon')


def test_messages_of_a_conversation_that_came_from_elsewhere_are_told_too() -> None:
    """They have none of our fields."""
    found = history(
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "time?"},
        {"role": "assistant", "content": "noon", "turn": 7, "calls": [{"id": "x"}, "y"]},
        {"role": "tool", "content": "12:00", "tool_call_id": "x"},
    )

    assert found == [
        UserMessage("Be kind."),
        UserMessage("time?"),
        AssistantMessage("noon"),
        UserMessage("[A tool has answered]\n12:00"),
    ]


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"type": "image", "mimeType": "image/png", "data": "AAAA"}, "[image image/png: not shown to the model]"),
        ({"type": "resource_link", "name": "log", "uri": "/v1/x", "size": 9}, "[log: /v1/x, 9 bytes]"),
        ({"type": "resource", "resource": {"uri": "a:b", "text": "inside"}}, "inside"),
        ({"type": "text", "text": "plain"}, "plain"),
        ("no part at all", "no part at all"),
    ],
)
def test_what_is_no_text_is_named(part: Any, said: str) -> None:
    """Any message that MCP can produce is told somehow."""
    assert result_text({"outcome": "succeeded", "content": [part]}, 1_000) == said


def test_an_error_is_told_with_its_type_and_what_the_tool_had_said() -> None:
    """Both help the model."""
    failed = {"outcome": "timed_out", "error": {"type": "job_timeout", "message": "too slow"}, "content": []}

    assert result_text(failed, 1_000) == "job_timeout: too slow"
    assert result_text({"outcome": "cancelled", "content": []}, 1_000) == "the call was cancelled"


def test_the_oldest_turns_are_left_out_and_what_is_left_begins_with_a_user() -> None:
    """Never a result without its call."""
    old = [user("old " + "x" * 500), assistant("", "a"), result("a", "y" * 500)]
    found = history(*old, user("new"), assistant("answer"), chars=800)

    assert found == [UserMessage("new"), AssistantMessage("answer")]


def test_the_newest_question_is_told_however_long_it_is() -> None:
    """The provider judges then."""
    assert history(user("old"), assistant("so"), user("z" * 900), chars=100) == [UserMessage("z" * 900)]


def test_a_turn_whose_results_are_too_much_is_told_from_its_question_on() -> None:
    """Whole, as there is no place to cut it."""
    found = history(user("go"), assistant("", "a"), result("a", "y" * 900), chars=100)

    assert found[0] == UserMessage("go")
    assert len(found) == 3
