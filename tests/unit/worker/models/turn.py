"""What a chat turn does with a model: asks it once, and keeps what is told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.model_server import ModelServer
from tests.model_wire import Provider
from worker.models.contract import ChatModel, ModelMessage, Reply, ToolOffer, UserMessage
from worker.models.opening import ModelChoice, open_model

KEY = "sk-test-0123456789abcdef"
ADD = ToolOffer("add", "Adds two numbers.", {"type": "object", "properties": {"a": {"type": "number"}}})


@dataclass
class Turn:
    model: ChatModel
    told: list[str] = field(default_factory=list)

    async def ask(
        self, *messages: ModelMessage, system: str = "Be brief.", tools: Sequence[ToolOffer] = (ADD,)
    ) -> Reply:
        return await self.model.reply(
            system, messages or (UserMessage("Hello"),), tools, max_tokens=100, tell=self._tell
        )

    async def _tell(self, text: str) -> None:
        self.told.append(text)


@asynccontextmanager
async def open_turn(
    server: ModelServer,
    provider: Provider,
    *,
    base_url: str | None = None,
    api_key: str = KEY,
    retries: int = 2,
    timeout_s: float = 10,
) -> AsyncIterator[Turn]:
    url = base_url or (server.openai_url if provider == "openai" else server.anthropic_url)
    async with open_model(ModelChoice(provider, "m-1", url, api_key, retries, timeout_s)) as model:
        yield Turn(model)
