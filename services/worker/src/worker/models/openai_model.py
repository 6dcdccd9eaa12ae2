"""ChatModel over the official `openai` SDK: Chat Completions, as OpenAI and many servers of models speak them.

What those servers do differently from OpenAI, and is taken as it comes: no usage; tool calls without id, with a late
one, or without index; several under one index (told apart by id and name); a name in every delta; `content: null`.
Ollama does not heed `max_completion_tokens` and writes on without end; OpenAI's newer models refuse `max_tokens`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2
from openai import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    AsyncOpenAI,
    AsyncStream,
    DefaultAsyncHttpxClient,
    OpenAIError,
    Timeout,
)
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletionChunk
from openai.types.chat.chat_completion_chunk import ChoiceDeltaToolCall

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

BASE_URL = "https://api.openai.com/v1"
_TAKE_NEW_LIMIT = ("openai.com", "azure.com")


class OpenAIModel:
    def __init__(
        self, model: str, base_url: str | None, api_key: str, *, retries: int, timeout_s: float, connect_s: float
    ) -> None:
        """`timeout_s` is of one wait: for the beginning of the answer, and for more of it."""
        self.name = f"openai:{model}"
        self._model = model
        url = base_url or BASE_URL
        host = urlsplit(url).hostname or ""
        self.limit_field = "max_completion_tokens" if host.endswith(_TAKE_NEW_LIMIT) else "max_tokens"
        """What the server calls the limit of tokens."""
        self._failures = Failures(self.name, api_key, timeout_s)
        self._client = AsyncOpenAI(
            api_key=api_key,
            base_url=url,
            max_retries=retries,
            timeout=Timeout(timeout_s, connect=connect_s),
            http_client=DefaultAsyncHttpxClient(event_hooks={"response": [no_long_wait]}),
        )
        self._completions = self._client.chat.completions  # imports more of the SDK

    async def reply(
        self, system: str, messages: Sequence[ModelMessage], tools: Sequence[ToolOffer], *, max_tokens: int, tell: Tell
    ) -> Reply:
        request: dict[str, Any] = {"messages": encode_messages(system, messages), self.limit_field: max_tokens}
        if tools:
            request["tools"] = [encode_tool(tool) for tool in tools]
        answer = _Answer()
        async with await self._begun(request) as stream, aclosing(self._chunks(stream)) as chunks:
            async for chunk in chunks:
                if piece := answer.take(chunk):
                    await tell(piece)
                if answer.characters > MAX_CHARACTERS:
                    return answer.made(cut=True)
        if not answer.finished:
            raise self._failures.cut_short()
        return answer.made()

    async def close(self) -> None:
        await self._client.close()

    async def _begun(self, request: dict[str, Any]) -> AsyncStream[ChatCompletionChunk]:
        """The provider's answer, once it has begun."""
        try:
            stream: AsyncStream[ChatCompletionChunk] = await self._completions.create(
                model=self._model, stream=True, stream_options={"include_usage": True}, **request
            )
        except APIStatusError as exc:
            raise self._failures.of_status(exc.status_code, exc.body) from exc
        except APITimeoutError as exc:
            raise self._failures.of_silence(exc) from exc
        except (APIConnectionError, httpx2.HTTPError) as exc:  # the latter where an error's body breaks off
            raise self._failures.of_connection(exc) from exc
        except (OpenAIError, ValueError) as exc:  # the latter of what no JSON can say
            raise self._failures.of_request(exc) from exc
        return stream

    async def _chunks(self, stream: AsyncStream[ChatCompletionChunk]) -> AsyncGenerator[ChatCompletionChunk]:
        """Translates what the reading of the stream raises, and not what is raised by who takes the chunks."""
        try:
            async for chunk in stream:
                yield chunk
        except APIConnectionError as exc:
            raise self._failures.broken(exc) from exc
        except APIError as exc:
            raise self._failures.told_broken(exc.body or exc.message) from exc
        except (OpenAIError, ValueError) as exc:  # an event that is no JSON
            raise self._failures.broken(exc) from exc


@dataclass
class _Call:
    id: str = ""
    name: str = ""
    written: str = ""


class _Answer:
    """One answer, put together from its chunks."""

    def __init__(self) -> None:
        self.characters = 0
        self._text: list[str] = []
        self._calls: list[_Call] = []
        self._by_index: dict[int | None, _Call] = {}
        self._usage: CompletionUsage | None = None
        self._finish = ""
        self._refused = False

    @property
    def finished(self) -> bool:
        return bool(self._finish)

    def take(self, chunk: ChatCompletionChunk) -> str:
        """The piece of text in `chunk`. Of what the SDK's types say is there, anything may be missing."""
        self._usage = chunk.usage or self._usage
        if not chunk.choices:  # as in the last one, which tells the usage
            return ""
        choice = chunk.choices[0]
        self._finish = choice.finish_reason or self._finish
        if choice.delta is None:
            return ""
        for delta in choice.delta.tool_calls or ():
            self._add(delta)
        self._refused = self._refused or bool(choice.delta.refusal)
        piece: str = nearest(choice.delta.content or choice.delta.refusal or "")
        self._text.append(piece)
        self.characters += len(piece)
        return piece

    def made(self, *, cut: bool = False) -> Reply:
        refused = self._refused or self._finish == "content_filter"
        used = self._usage
        return Reply(
            "".join(self._text),
            tuple(
                made_call(call.id or f"call-{number}", call.name, call.written)
                for number, call in enumerate(self._calls, 1)
            ),
            Usage(used.prompt_tokens or 0, used.completion_tokens or 0) if used else Usage(),
            "refused" if refused else "length" if cut or self._finish == "length" else "whole",
        )

    def _add(self, delta: ChoiceDeltaToolCall) -> None:
        name = (delta.function and delta.function.name) or ""
        written = (delta.function and delta.function.arguments) or ""
        index: int | None = delta.index
        call = self._by_index.get(index)
        # Another id alone begins none: there are servers that make a new one for each delta.
        another = name and call and ((call.id and delta.id and delta.id != call.id) or (index is None and not delta.id))
        if call is None or another:
            call = self._by_index[index] = _Call()
            self._calls.append(call)
        call.id = call.id or delta.id or ""
        if name != call.name:
            call.name += name
        call.written += written
        self.characters += len(name) + len(written)


def encode_tool(tool: ToolOffer) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": tool.schema},
    }


def encode_messages(system: str, messages: Sequence[ModelMessage]) -> list[dict[str, Any]]:
    encoded: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    for message in messages:
        match message:
            case UserMessage(text):
                encoded.append({"role": "user", "content": text})
            case AssistantMessage(text, ()):
                encoded.append({"role": "assistant", "content": text})
            case AssistantMessage(text, calls):
                encoded.append(
                    {"role": "assistant", "content": text or None, "tool_calls": [_encode_call(call) for call in calls]}
                )
            case ToolMessage(call, text):
                encoded.append({"role": "tool", "tool_call_id": call, "content": text})
    return encoded


def _encode_call(call: ToolCall) -> dict[str, Any]:
    arguments = json.dumps(sent_back(call), ensure_ascii=False, separators=(",", ":"))
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}
