"""What only OpenAI's protocol has, and what servers that speak it make of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.model_server import Call, Calls, Events, ModelServer, Say
from tests.model_wire import openai_chunk
from tests.unit.worker.models.turn import ADD, Turn, open_turn
from worker.models.contract import AssistantMessage, ToolCall, ToolMessage, Usage, UserMessage
from worker.models.errors import ModelInterrupted
from worker.models.openai_model import OpenAIModel


@pytest.fixture
async def turn(server: ModelServer) -> AsyncIterator[Turn]:
    async with open_turn(server, "openai") as opened:
        yield opened


def deltas(*calls: dict[str, Any]) -> Events:
    """A stream in which each of `calls` is a delta of a tool call."""
    chunks = [openai_chunk({"tool_calls": [call]}) for call in calls]
    return Events([*chunks, openai_chunk({}, finish="tool_calls"), "[DONE]"])


def function(arguments: str | None = None, name: str | None = None) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": arguments}}


async def test_a_request_is_encoded_as_the_provider_wants_it(server: ModelServer, turn: Turn) -> None:
    """Each result of a tool is a message of its own; arguments are text."""
    server.will(Say("x"))

    await turn.ask(
        UserMessage("Add é"),
        AssistantMessage("", (ToolCall("c1", "add", {"a": "é"}), ToolCall("c2", "add", None, "{a}"))),
        ToolMessage("c1", "3", failed=False),
        ToolMessage("c2", "not valid", failed=True),
        AssistantMessage("It is 3."),
        UserMessage("And now?"),
    )

    assert server.requests[0].body == {
        "model": "m-1",
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 100,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Add é"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":"é"}'}},
                    {
                        "id": "c2",
                        "type": "function",
                        "function": {"name": "add", "arguments": '{"not_json":"{a}"}'},
                    },
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "3"},
            {"role": "tool", "tool_call_id": "c2", "content": "not valid"},
            {"role": "assistant", "content": "It is 3."},
            {"role": "user", "content": "And now?"},
        ],
        "tools": [
            {
                "type": "function",
                "function": {"name": "add", "description": "Adds two numbers.", "parameters": ADD.schema},
            }
        ],
    }


async def test_what_there_is_none_of_is_left_out(server: ModelServer, turn: Turn) -> None:
    """An empty list of tools, or an empty system message, is refused by some servers."""
    server.will(Say("x"))

    await turn.ask(system="", tools=())

    assert "tools" not in server.requests[0].body
    assert server.requests[0].body["messages"] == [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize(
    ("base_url", "field"),
    [
        (None, "max_completion_tokens"),
        ("https://eu.api.openai.com/v1", "max_completion_tokens"),
        ("https://us.openai.azure.com/openai/v1", "max_completion_tokens"),
        ("http://localhost:11434/v1", "max_tokens"),
    ],
)
async def test_the_limit_of_tokens_has_the_name_that_the_server_heeds(base_url: str | None, field: str) -> None:
    """OpenAI refuses the old one for its newer models; others ignore the new one and write without end."""
    model = OpenAIModel("m", base_url, "key", retries=0, timeout_s=1, connect_s=1)

    assert model.limit_field == field
    await model.close()


async def test_deltas_of_several_calls_may_alternate(server: ModelServer, turn: Turn) -> None:
    """Their index says whose they are."""
    server.will(Calls([Call("add", {"a": 1, "b": 2}, "x"), Call("add", {"a": 3}, "y")], interleaved=True, piece=2))

    reply = await turn.ask()

    assert reply.calls == (ToolCall("x", "add", {"a": 1, "b": 2}), ToolCall("y", "add", {"a": 3}))


@pytest.mark.parametrize(
    ("stream", "calls"),
    [
        pytest.param(
            [{"index": 0, **function("", "add")}, {"index": 0, **function('{"a":1}')}],
            [ToolCall("call-1", "add", {"a": 1})],
            id="without-id",
        ),
        pytest.param(
            [{"index": 0, **function('{"a":', "add")}, {"index": 0, "id": "late", **function("1}")}],
            [ToolCall("late", "add", {"a": 1})],
            id="late-id",
        ),
        pytest.param(
            [{"index": 0, "id": "i1", **function('{"a":', "add")}, {"index": 0, "id": "i2", **function("1}")}],
            [ToolCall("i1", "add", {"a": 1})],
            id="new-id-in-each-delta",
        ),
        pytest.param(
            [{"index": 0, "id": "i", **function('{"a":', "add")}, {"index": 0, "id": "i", **function("1}", "add")}],
            [ToolCall("i", "add", {"a": 1})],
            id="name-in-each-delta",
        ),
        pytest.param(
            [{"index": 0, "id": "i", **function(None, "li")}, {"index": 0, **function(None, "st")}],
            [ToolCall("i", "list", {})],
            id="name-in-two-deltas",
        ),
        pytest.param(
            [{"index": 0, "id": "x", **function("{}", "add")}, {"index": 0, "id": "y", **function("{}", "list")}],
            [ToolCall("x", "add", {}), ToolCall("y", "list", {})],
            id="one-index-for-all",
        ),
        pytest.param(
            [{"id": "x", **function('{"a":', "add")}, function("1}"), {"id": "y", **function("{}", "add")}],
            [ToolCall("x", "add", {"a": 1}), ToolCall("y", "add", {})],
            id="without-index",
        ),
        pytest.param(
            [{"id": "", **function("{}", "add")}, {"id": "", **function('{"a":1}', "add")}],
            [ToolCall("call-1", "add", {}), ToolCall("call-2", "add", {"a": 1})],
            id="without-index-and-id",
        ),
        pytest.param(
            [{"index": 1, "id": "x", **function("{}", "add")}, {"index": 3, "id": "y", "function": None}],
            [ToolCall("x", "add", {}), ToolCall("y", "", {})],
            id="odd-indexes-and-no-function",
        ),
    ],
)
async def test_calls_are_put_together_as_servers_send_them(
    server: ModelServer, turn: Turn, stream: list[dict[str, Any]], calls: list[ToolCall]
) -> None:
    """They agree on less than the protocol says."""
    server.will(deltas(*stream))

    assert list((await turn.ask()).calls) == calls


async def test_a_server_may_leave_out_what_it_does_not_count(server: ModelServer, turn: Turn) -> None:
    """No usage, `content: null`, no `choices`, no end mark."""
    server.will(
        Events(
            [
                {"id": "x", "object": "chat.completion.chunk", "choices": [], "prompt_filter_results": []},
                openai_chunk({"role": "assistant", "content": None}),
                {"choices": [{"index": 0, "delta": {"content": "Hello"}}]},
                {"choices": [{"index": 0, "delta": None, "finish_reason": "stop"}]},
                {"object": "chat.completion.chunk"},
            ]
        )
    )

    reply = await turn.ask()

    assert (reply.text, reply.usage, reply.ended) == ("Hello", Usage(), "whole")


async def test_usage_in_each_chunk_is_counted_once(server: ModelServer, turn: Turn) -> None:
    """The last one holds the sums."""
    used = [{"prompt_tokens": 5, "completion_tokens": n, "total_tokens": 5 + n} for n in (1, 2)]
    server.will(
        Events(
            [
                {**openai_chunk({"content": "x"}), "usage": used[0]},
                {**openai_chunk({}, finish="stop"), "usage": used[1]},
                "[DONE]",
            ]
        )
    )

    assert (await turn.ask()).usage == Usage(5, 2)


async def test_a_refusal_is_told_as_text(server: ModelServer, turn: Turn) -> None:
    """It stands in a field of its own."""
    server.will(Events([openai_chunk({"refusal": "I will "}), openai_chunk({"refusal": "not."}, finish="stop")]))

    reply = await turn.ask()

    assert (reply.text, reply.ended, turn.told) == ("I will not.", "refused", ["I will ", "not."])


async def test_an_error_in_the_stream_interrupts_the_answer(server: ModelServer, turn: Turn) -> None:
    """In the provider's words."""
    server.will(Events([openai_chunk({"content": "I"}), {"error": {"message": "out of memory", "code": 500}}]))

    with pytest.raises(ModelInterrupted, match="out of memory"):
        await turn.ask()
