"""What only Anthropic's protocol has."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.model_server import Call, Events, Hold, ModelServer, Say
from tests.model_wire import anthropic_events
from tests.unit.worker.models.turn import ADD, Turn, open_turn
from worker.models.contract import AssistantMessage, ToolCall, ToolMessage, Usage, UserMessage
from worker.models.errors import ModelInterrupted


@pytest.fixture
async def turn(server: ModelServer) -> AsyncIterator[Turn]:
    async with open_turn(server, "anthropic") as opened:
        yield opened


async def test_a_request_is_encoded_as_the_provider_wants_it(server: ModelServer, turn: Turn) -> None:
    """All results of one answer's calls are one message; an answer without text has no block for it."""
    server.will(Say("x"))

    await turn.ask(
        UserMessage("Add é"),
        AssistantMessage("\n", (ToolCall("c1", "add", {"a": "é"}), ToolCall("c2", "add", None, "no JSON"))),
        ToolMessage("c1", "3", failed=False),
        ToolMessage("c2", "", failed=True),
        AssistantMessage("Again:", (ToolCall("c3", "add", {}),)),
        ToolMessage("c3", "0", failed=False),
        AssistantMessage(""),
        UserMessage("And now?"),
    )

    assert server.requests[0].body == {
        "model": "m-1",
        "stream": True,
        "max_tokens": 100,
        "system": "Be brief.",
        "messages": [
            {"role": "user", "content": "Add é"},
            {
                "role": "assistant",
                "content": [
                    {"type": "tool_use", "id": "c1", "name": "add", "input": {"a": "é"}},
                    {"type": "tool_use", "id": "c2", "name": "add", "input": {"not_json": "no JSON"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "c1", "content": "3"},
                    {"type": "tool_result", "tool_use_id": "c2", "is_error": True},
                ],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "Again:"},
                    {"type": "tool_use", "id": "c3", "name": "add", "input": {}},
                ],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c3", "content": "0"}]},
            {"role": "user", "content": "And now?"},
        ],
        "tools": [{"name": "add", "description": "Adds two numbers.", "input_schema": ADD.schema}],
    }


async def test_what_there_is_none_of_is_left_out(server: ModelServer, turn: Turn) -> None:
    server.will(Say("x"))

    await turn.ask(system="", tools=())

    assert server.requests[0].body.keys() == {"model", "stream", "max_tokens", "messages"}


async def test_what_was_cached_counts_as_input(server: ModelServer, turn: Turn) -> None:
    """The provider tells it apart, and the sums twice."""
    start, *others = anthropic_events(Say("x", usage=Usage(3, 9)), "m")
    start["message"]["usage"] |= {"cache_read_input_tokens": 100, "cache_creation_input_tokens": 20}
    server.will(Events([start, *others]))

    assert (await turn.ask()).usage == Usage(123, 9)


async def test_a_full_context_is_a_limit_of_length(server: ModelServer, turn: Turn) -> None:
    events = [
        {**event, "delta": {"stop_reason": "model_context_window_exceeded"}}
        if event["type"] == "message_delta"
        else event
        for event in anthropic_events(Say("x"), "m")
    ]
    server.will(Events(events))

    assert (await turn.ask()).ended == "length"


async def test_what_is_no_text_and_no_call_is_passed_over(server: ModelServer, turn: Turn) -> None:
    """Thinking, and events and blocks that are newer than the SDK."""
    start, *others = anthropic_events(Say("Hello"), "m")
    unknown: list[dict[str, Any]] = [
        {
            "type": "content_block_start",
            "index": 7,
            "content_block": {"type": "thinking", "thinking": "", "signature": ""},
        },
        {"type": "content_block_delta", "index": 7, "delta": {"type": "thinking_delta", "thinking": "Hm."}},
        {"type": "content_block_start", "index": 8, "content_block": {"type": "brand_new"}},
        {"type": "content_block_delta", "index": 8, "delta": {"type": "brand_new_delta"}},
        {"type": "content_block_delta", "index": 8, "delta": {"type": "input_json_delta", "partial_json": "{"}},
        {"type": "brand_new_event"},
    ]
    server.will(Events([start, *unknown, *others]))

    reply = await turn.ask()

    assert (reply.text, reply.calls) == ("Hello", ())


async def test_arguments_may_come_at_once(server: ModelServer, turn: Turn) -> None:
    """In the block's beginning, from servers that do not stream them."""
    events = list(anthropic_events(Say("", [Call("add", "")]), "m"))
    for event in events:
        if event["type"] == "content_block_start":
            event["content_block"]["input"] = {"a": 1}
    server.will(Events(events))

    assert (await turn.ask()).calls == (ToolCall("toolu_0", "add", {"a": 1}),)


@pytest.mark.parametrize("kind", ["overloaded_error", "api_error"])
async def test_an_error_in_the_stream_interrupts_the_answer(server: ModelServer, turn: Turn, kind: str) -> None:
    """In the provider's words."""
    start, *_ = anthropic_events(Say("Hello"), "m")
    server.will(Events([start, {"type": "error", "error": {"type": kind, "message": "Overloaded"}}]))

    with pytest.raises(ModelInterrupted, match="broke off: Overloaded"):
        await turn.ask()


async def test_an_answer_is_whole_with_its_last_event(server: ModelServer, turn: Turn) -> None:
    """Though the server does not end the body."""
    say = Say("Hello")
    server.will(Hold(say, after=len(list(anthropic_events(say, "m")))))

    assert (await turn.ask()).text == "Hello"
