"""What a chat turn asks of a model, whoever provides it. Data only: no provider's type comes beyond its own module."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol


@dataclass(frozen=True)
class ToolOffer:
    """A tool that the model may call."""

    name: str
    """1-64 letters, digits, - and _; unique among those of one request."""
    description: str
    schema: dict[str, Any]
    """JSON Schema of its arguments, an object's."""


@dataclass(frozen=True)
class ToolCall:
    """A call that a model asks for."""

    id: str
    """Ours in what the model is told; the provider's in a reply."""
    name: str
    """As it was offered, unless the model made one up."""
    arguments: dict[str, Any] | None
    """None where the model wrote no JSON object."""
    written: str = ""
    """What it wrote then."""


@dataclass(frozen=True)
class UserMessage:
    text: str


@dataclass(frozen=True)
class AssistantMessage:
    text: str
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class ToolMessage:
    """What came of one call of the assistant's message before it."""

    call: str
    """Its id."""
    text: str
    failed: bool


ModelMessage = UserMessage | AssistantMessage | ToolMessage


@dataclass(frozen=True)
class Usage:
    """Tokens as the provider counts them; 0 where it tells none."""

    input_tokens: int = 0
    output_tokens: int = 0

    @property
    def total(self) -> int:
        return self.input_tokens + self.output_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.input_tokens + other.input_tokens, self.output_tokens + other.output_tokens)


@dataclass(frozen=True)
class Reply:
    """One whole answer of a model."""

    text: str
    calls: tuple[ToolCall, ...]
    usage: Usage
    ended: Literal["whole", "length", "refused"]
    """`length`: it had more to say than its limit of tokens; `refused`: the provider's filter cut it off."""


Tell = Callable[[str], Awaitable[None]]
"""Takes a piece of text as the model writes it; waits while nobody takes more."""


class ChatModel(Protocol):
    """Safe for use by many turns at once."""

    name: str
    """As the operator set it, such as `openai:gpt-4o`."""

    async def reply(
        self, system: str, messages: Sequence[ModelMessage], tools: Sequence[ToolOffer], *, max_tokens: int, tell: Tell
    ) -> Reply:
        """Ask for one answer of at most `max_tokens` tokens. Its text is told as it comes and stands in the reply too.

        Cancelled, it stops asking: the connection is closed.

        Raises:
            ModelUnavailable: after the SDK's own retries; nothing was told.
            ModelInterrupted: if the answer broke off in its middle.
            ModelRefused: if asking again would not help: a wrong key, model name or request.
        """

    async def close(self) -> None: ...
