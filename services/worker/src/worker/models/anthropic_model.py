"""ChatModel over the official `anthropic` SDK: Messages."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, Literal

import anyio
import httpx2
from anthropic import (
    AnthropicError,
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AsyncAnthropic,
    AsyncStream,
    DefaultAsyncHttpxClient,
    Timeout,
)
from anthropic.types import MessageDeltaUsage, RawMessageStreamEvent
from anthropic.types import Usage as StartUsage

from common.schema import nearest
from worker.models.contract import (
    AssistantMessage,
    ModelMessage,
    Reply,
    Tell,
    ToolCall,
    ToolMessage,
    ToolOffer,
    Usage,
    UserMessage,
)
from worker.models.failures import Failures
from worker.models.retry_after import no_long_wait
from worker.models.written import MAX_CHARACTERS, made_call, sent_back

BASE_URL = "https://api.anthropic.com"
LAST_BYTES_S = 0.1
"""For what stands behind the last event, so that the connection can be used again."""

# Errors of the stream that this SDK lets through as they are; the last two httpx2 does the same with.
_BROKEN = (AnthropicError, ValueError, httpx2.HTTPError, ssl.SSLError, anyio.EndOfStream)
_ENDED: Final[dict[str, Literal["length", "refused"]]] = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "refused",
}


class AnthropicModel:
    def __init__(
        self, model: str, base_url: str | None, api_key: str, *, retries: int, timeout_s: float, connect_s: float
    ) -> None:
        """`timeout_s` is of one wait: for the beginning of the answer, and for more of it."""
        self.name = f"anthropic:{model}"
        self._model = model
        self._failures = Failures(self.name, api_key, timeout_s)
        url = base_url or BASE_URL
        self._client = AsyncAnthropic(
            api_key=api_key,
            base_url=url,
            max_retries=retries,
            timeout=Timeout(timeout_s, connect=connect_s),
            http_client=DefaultAsyncHttpxClient(event_hooks={"response": [no_long_wait]}),
        )
        self._messages = self._client.messages  # imports more of the SDK

    async def reply(
        self, system: str, messages: Sequence[ModelMessage], tools: Sequence[ToolOffer], *, max_tokens: int, tell: Tell
    ) -> Reply:
        request: dict[str, Any] = {"messages": encode_messages(messages), "max_tokens": max_tokens}
        if system:
            request["system"] = system
        if tools:
            request["tools"] = [encode_tool(tool) for tool in tools]
        answer = _Answer()
        async with await self._begun(request) as stream, aclosing(self._events(stream)) as events:
            async for event in events:
                if piece := answer.take(event):
                    await tell(piece)
                if answer.characters > MAX_CHARACTERS:
                    return answer.made(cut=True)
        return answer.made()

    async def close(self) -> None:
        await self._client.close()

    async def _begun(self, request: dict[str, Any]) -> AsyncStream[RawMessageStreamEvent]:
        """The provider's answer, once it has begun."""
        try:
            stream: AsyncStream[RawMessageStreamEvent] = await self._messages.create(
                model=self._model, stream=True, **request
            )
        except APIStatusError as exc:
            raise self._failures.of_status(exc.status_code, exc.body) from exc
        except APITimeoutError as exc:
            raise self._failures.of_silence(exc) from exc
        except (APIConnectionError, httpx2.HTTPError) as exc:  # the latter where an error's body breaks off
            raise self._failures.of_connection(exc) from exc
        except (AnthropicError, ValueError) as exc:  # the latter of what no JSON can say
            raise self._failures.of_request(exc) from exc
        return stream

    async def _events(self, stream: AsyncStream[RawMessageStreamEvent]) -> AsyncGenerator[RawMessageStreamEvent]:
        """All of an answer. Translates what the reading raises, and not what is raised by who takes the events."""
        try:
            async for event in stream:
                if event.type == "message_stop":
                    await _read_out(stream)
                    return
                yield event
        except APIStatusError as exc:
            raise self._failures.told_broken(exc.body) from exc
        except _BROKEN as exc:
            raise self._failures.broken(exc) from exc
        raise self._failures.cut_short()


async def _read_out(stream: AsyncStream[RawMessageStreamEvent]) -> None:
    """The answer is whole: what goes wrong behind its end costs no more than the connection."""
    try:
        async with asyncio.timeout(LAST_BYTES_S):
            async for _ in stream:
                pass
    except (TimeoutError, *_BROKEN):
        return


@dataclass
class _Block:
    id: str
    name: str
    given: dict[str, object]
    """Arguments that came at once."""
    written: str = ""

    def made(self) -> ToolCall:
        return made_call(self.id, self.name, self.written or json.dumps(self.given or {}))


class _Answer:
    """One answer, put together from its events. Thinking, and events that are newer than this, are passed over."""

    def __init__(self) -> None:
        self.characters = 0
        self._text: list[str] = []
        self._blocks: dict[int, _Block] = {}
        self._input_tokens = 0
        self._output_tokens = 0
        self._stop = ""

    def take(self, event: RawMessageStreamEvent) -> str:
        """The piece of text in `event`."""
        if event.type == "content_block_delta":
            if event.delta.type == "text_delta":
                return self._more(event.delta.text)
            if event.delta.type == "input_json_delta" and event.index in self._blocks:
                self._blocks[event.index].written += event.delta.partial_json
                self.characters += len(event.delta.partial_json)
        elif event.type == "content_block_start":
            block = event.content_block
            if block.type == "text":
                return self._more(block.text)
            if block.type == "tool_use":
                self._blocks[event.index] = _Block(block.id, block.name, block.input)
        elif event.type == "message_start":
            self._count(event.message.usage)
        elif event.type == "message_delta":
            self._stop = event.delta.stop_reason or self._stop
            self._count(event.usage)
        return ""

    def made(self, *, cut: bool = False) -> Reply:
        return Reply(
            "".join(self._text),
            tuple(block.made() for block in self._blocks.values()),
            Usage(self._input_tokens, self._output_tokens),
            "length" if cut else _ENDED.get(self._stop, "whole"),
        )

    def _more(self, text: str) -> str:
        text = nearest(text)
        self._text.append(text)
        self.characters += len(text)
        return text

    def _count(self, told: StartUsage | MessageDeltaUsage | None) -> None:
        """Each event tells the sums so far; what was read from a cache, or written to it, is told beside the input."""
        if told is None:  # whatever the SDK's type says
            return
        read = (told.input_tokens or 0) + (told.cache_creation_input_tokens or 0) + (told.cache_read_input_tokens or 0)
        self._input_tokens = read or self._input_tokens
        self._output_tokens = told.output_tokens or self._output_tokens


def encode_tool(tool: ToolOffer) -> dict[str, Any]:
    return {"name": tool.name, "description": tool.description, "input_schema": tool.schema}


def encode_messages(messages: Sequence[ModelMessage]) -> list[dict[str, Any]]:
    """The results of one message's calls stand in one message of the user; texts that are blank are not taken."""
    encoded: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for message in messages:
        if isinstance(message, ToolMessage):
            if not results:
                encoded.append({"role": "user", "content": results})
            results.append(_encode_result(message))
            continue
        results = []
        if isinstance(message, UserMessage):
            encoded.append({"role": "user", "content": message.text})
        elif content := _encode_answer(message):
            encoded.append({"role": "assistant", "content": content})
    return encoded


def _encode_answer(message: AssistantMessage) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = []
    if message.text.strip():
        content.append({"type": "text", "text": message.text})
    for call in message.calls:
        content.append({"type": "tool_use", "id": call.id, "name": call.name, "input": sent_back(call)})
    return content


def _encode_result(message: ToolMessage) -> dict[str, Any]:
    result: dict[str, Any] = {"type": "tool_result", "tool_use_id": message.call}
    if message.text.strip():
        result["content"] = message.text
    if message.failed:
        result["is_error"] = True
    return result
