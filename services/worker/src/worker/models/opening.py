"""The model that the operator chose, opened. The SDKs are optional: one is imported when its model is opened."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, get_args
from urllib.parse import urlsplit

from common.errors import BrokenError
from worker.models.contract import ChatModel

if TYPE_CHECKING:
    from worker.models.anthropic_model import AnthropicModel
    from worker.models.openai_model import OpenAIModel

Provider = Literal["openai", "anthropic"]
PROVIDERS: Final[tuple[Provider, ...]] = get_args(Provider)
CONNECT_TIMEOUT_S: Final = 10.0
_NO_KEY = "none"
"""What a server without keys is sent: the SDKs ask for one, or look for others' in the environment."""


class ModelUnusable(BrokenError):
    """The model that is configured cannot be opened: its worker does not start."""

    type = "model_unusable"


class SdkMissing(ModelUnusable):
    """The package of a provider is not installed."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        super().__init__(
            f"the package {provider!r} is not installed: pip install mcp-orchestrator-worker[{provider}]",
        )


@dataclass(frozen=True)
class ModelChoice:
    """
    Raises:
        ValueError: if no HTTP header can carry the key, or the base URL is not one of HTTP.
    """

    provider: Provider
    model: str
    base_url: str | None
    """None is the provider's own. Of OpenAI-compatible servers it ends with `/v1` most of the time."""
    api_key: str = field(repr=False)
    """Empty for a server that asks for none."""
    retries: int
    """After the first request, while no answer has begun; each after up to 8 s, or 30 s if the provider says so."""
    timeout_s: float
    """How long the provider may say nothing: before its answer and in its middle."""

    def __post_init__(self) -> None:
        # The error of the HTTP library would quote it.
        if not all("!" <= character <= "~" for character in self.api_key):
            raise ValueError("the model's API key has characters, such as a space or a line break, that no key has")
        if self.base_url is not None:
            url = urlsplit(self.base_url)
            if url.scheme not in ("http", "https") or not url.hostname or url.port == 0:
                raise ValueError(f"the model's base URL is http:// or https:// with a host, not {self.base_url!r}")


def model_named(text: str) -> tuple[Provider, str]:
    """Provider and model of `openai:gpt-4o`. A model's own name may have colons.

    Raises:
        ValueError: if it has another form.
    """
    provider, _, model = text.partition(":")
    if provider not in PROVIDERS or not model or model != model.strip():
        known = " or ".join(f"{one}:<model>" for one in PROVIDERS)
        raise ValueError(f"a model is named {known}, such as openai:gpt-4o; not {text!r}")
    return provider, model


@asynccontextmanager
async def open_model(choice: ModelChoice) -> AsyncIterator[ChatModel]:
    """Nothing is asked of the provider yet.

    Raises:
        SdkMissing: if the worker was installed without the provider's extra.
    """
    # To import an SDK takes seconds, in which the worker's other tasks go on.
    model = await asyncio.to_thread(_made, choice)
    try:
        yield model
    finally:
        await model.close()


def _made(choice: ModelChoice) -> ChatModel:
    make: type[OpenAIModel] | type[AnthropicModel]
    try:
        if choice.provider == "openai":
            from worker.models.openai_model import OpenAIModel as make
        else:
            from worker.models.anthropic_model import AnthropicModel as make
    except ModuleNotFoundError as exc:
        if exc.name != choice.provider:
            raise
        raise SdkMissing(choice.provider) from exc
    return make(
        choice.model,
        choice.base_url,
        choice.api_key or _NO_KEY,
        retries=choice.retries,
        timeout_s=choice.timeout_s,
        connect_s=min(CONNECT_TIMEOUT_S, choice.timeout_s),
    )
