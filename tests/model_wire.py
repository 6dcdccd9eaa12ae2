"""The two wire protocols in which providers stream answers of models (SSE), as the tests' own server speaks them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal

from worker.models.contract import Usage

Provider = Literal["openai", "anthropic"]
Ended = Literal["whole", "length", "refused"]
USED = Usage(11, 7)
"""What an answer has cost where a test says nothing of it."""


@dataclass(frozen=True)
class Call:
    """A tool call that the model asks for."""

    name: str
    arguments: dict[str, Any] | str
    """A text stands on the wire as it is, JSON or not."""
    id: str = ""
    """Given by the server where a test needs none of its own."""

    @property
    def written(self) -> str:
        return self.arguments if isinstance(self.arguments, str) else json.dumps(self.arguments, ensure_ascii=False)


@dataclass(frozen=True)
class Say:
    """An answer. Everything behind `calls` is how it is told."""

    text: str = ""
    calls: Sequence[Call] = ()
    usage: Usage | None = USED
    ended: Ended = "whole"
    piece: int = 5
    """Characters of text or arguments in one event."""
    interleaved: bool = False
    """The arguments of all calls come in turns (OpenAI's protocol only)."""
    cut: int | None = None
    """Bytes of one piece of the stream, wherever that cuts; None is a piece for each event."""
    newline: str = "\n"


def Calls(calls: Sequence[Call], **told: Any) -> Say:
    """An answer that is tool calls only; `told` as the fields of `Say`."""
    return Say(calls=calls, **told)


def wire_events(provider: Provider, say: Say, model: str) -> list[bytes]:
    """The answer as the provider's events, in order."""
    made = openai_events(say, model) if provider == "openai" else anthropic_events(say, model)
    return [encoded(provider, data, say.newline) for data in made]


def encoded(provider: Provider, data: dict[str, Any] | str, newline: str = "\n") -> bytes:
    """One event. Anthropic's have a name, which is the type of their data."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    name = f"event: {data['type']}{newline}" if provider == "anthropic" and isinstance(data, dict) else ""
    # Half a surrogate pair has no bytes; what Python writes for it is its escape in JSON.
    return f"{name}data: {text}{newline}{newline}".encode("utf-8", "backslashreplace")


def error_body(provider: Provider, status: int, message: str) -> dict[str, Any]:
    if provider == "openai":
        return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 529: "overloaded_error"}
    kind = kinds.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}


def openai_events(say: Say, model: str) -> Iterator[dict[str, Any] | str]:
    yield openai_chunk({"role": "assistant", "content": None if say.calls else "", "refusal": None}, model)
    for piece in _pieces(say.text, say.piece):
        yield openai_chunk({"content": piece}, model)
    deltas = [_openai_deltas(index, call, say.piece) for index, call in enumerate(say.calls)]
    rounds = zip_longest(*deltas) if say.interleaved else deltas
    for delta in (delta for some in rounds for delta in some if delta):
        yield openai_chunk({"tool_calls": [delta]}, model)
    whole = "tool_calls" if say.calls else "stop"
    yield openai_chunk({}, model, {"whole": whole, "length": "length", "refused": "content_filter"}[say.ended])
    if say.usage:
        counted = {"prompt_tokens": say.usage.input_tokens, "completion_tokens": say.usage.output_tokens}
        yield {**openai_chunk({}, model), "choices": [], "usage": {**counted, "total_tokens": say.usage.total}}
    yield "[DONE]"


def openai_chunk(delta: dict[str, Any], model: str = "m", finish: str | None = None) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1790000000,
        "model": model,
        "system_fingerprint": "fp_1",
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}],
        "usage": None,
    }


def _openai_deltas(index: int, call: Call, size: int) -> Iterator[dict[str, Any]]:
    begun = {"id": call.id or f"call_{index}", "type": "function", "function": {"name": call.name, "arguments": ""}}
    yield {"index": index, **begun}
    for piece in _pieces(call.written, size):
        yield {"index": index, "function": {"arguments": piece}}


def anthropic_events(say: Say, model: str) -> Iterator[dict[str, Any]]:
    used = say.usage or Usage()
    yield {
        "type": "message_start",
        "message": {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": used.input_tokens, "output_tokens": min(1, used.output_tokens)},
        },
    }
    blocks: list[tuple[dict[str, Any], str, str, str]] = []
    if say.text:
        blocks.append(({"type": "text", "text": ""}, "text_delta", "text", say.text))
    for number, call in enumerate(say.calls):
        begun = {"type": "tool_use", "id": call.id or f"toolu_{number}", "name": call.name, "input": {}}
        blocks.append((begun, "input_json_delta", "partial_json", call.written))
    for index, (begun, kind, name, whole) in enumerate(blocks):
        yield {"type": "content_block_start", "index": index, "content_block": begun}
        if index == 0:
            yield {"type": "ping"}
        for piece in ["", *_pieces(whole, say.piece)] if kind == "input_json_delta" else _pieces(whole, say.piece):
            yield {"type": "content_block_delta", "index": index, "delta": {"type": kind, name: piece}}
        yield {"type": "content_block_stop", "index": index}
    whole = "tool_use" if say.calls else "end_turn"
    stop = {"whole": whole, "length": "max_tokens", "refused": "refusal"}[say.ended]
    yield {
        "type": "message_delta",
        "delta": {"stop_reason": stop, "stop_sequence": None},
        "usage": {"output_tokens": used.output_tokens},
    }
    yield {"type": "message_stop"}


def _pieces(text: str, size: int) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]
