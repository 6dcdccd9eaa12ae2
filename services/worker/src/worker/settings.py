"""Settings of the worker. Names in the environment are the field names in upper case."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, field_validator, model_validator

from common.runtime import RuntimeSettings
from common.settings import BusSettings
from worker.chat.limits import ChatLimits
from worker.models.opening import ModelChoice, model_named
from worker.output_stream import OutputLimits


class WorkerSettings(BusSettings, RuntimeSettings):
    worker_concurrency: int = Field(default=10, ge=1, le=1000)
    """Jobs at once in this process, over all servers."""
    stream_output_threshold_bytes: int = Field(default=1024**2, ge=1024, le=2 * 1024**2)
    """Output up to this size stands whole in a job's result; more of it comes in events only."""
    artifact_threshold_bytes: int = Field(default=8 * 1024**2, ge=1024)
    """Output above this size is offered for download."""
    max_output_bytes: int = Field(default=2 * 1024**3, ge=1024)
    """What one job may write before it is stopped."""
    docker_host: str = "unix:///var/run/docker.sock"
    """The engine: `unix:///path` or `tcp://host:port`."""
    boots_at_once: int = Field(default_factory=lambda: os.cpu_count() or 2, ge=1)
    """Containers that start at the same time."""
    drain_timeout_s: float = Field(default=25, ge=0)
    """How long running jobs may go on after SIGTERM; below the pod's grace period."""
    reap_period_s: float = Field(default=15, gt=0)
    """Between two looks for containers that no live worker owns."""
    chat_model: str = ""
    """The model of chat turns, `openai:<model>` (any OpenAI-compatible endpoint) or `anthropic:<model>`; without one a
    turn ends with an error that says so."""
    chat_base_url: str | None = None
    """The provider's address where it is not the usual one, such as that of vLLM or Ollama."""
    chat_api_key: SecretStr = SecretStr("")
    """The provider's key."""
    chat_api_key_file: Path | None = None
    """A file that holds it, such as a mounted secret; instead of CHAT_API_KEY."""
    chat_concurrency: int = Field(default=50, ge=1, le=10_000)
    """Turns at once in this process, beside WORKER_CONCURRENCY: most of the time they wait."""
    chat_max_steps: int = Field(default=20, ge=1, le=1_000)
    """Answers of the model in one turn."""
    chat_max_tokens: int = Field(default=500_000, ge=1)
    """Tokens of all requests of a turn; beyond it the model is not asked again."""
    chat_reply_tokens: int = Field(default=8_192, ge=1)
    """Tokens of one answer."""
    chat_result_chars: int = Field(default=30_000, ge=100, le=1_000_000)
    """What the model is told of one call's result; the rest is cut, with a note where the whole is."""
    chat_history_chars: int = Field(default=400_000, ge=1_000, le=4_000_000)
    """What the model is told of a conversation; the oldest of it is left out."""
    chat_system_prompt: str = ""
    """Said to the model before every conversation."""
    chat_retries: int = Field(default=4, ge=0, le=20)
    """How often a request that the provider did not answer, or refused for now, is made again."""
    chat_request_timeout_s: float = Field(default=120, gt=0, le=3_600)
    """How long the provider may be silent."""
    health_host: str = "127.0.0.1"
    health_port: int = Field(default=8081, ge=0, le=65535)
    """Where /livez, /readyz and /metrics are served."""

    @field_validator("chat_model")
    @classmethod
    def _a_models_name(cls, value: str) -> str:
        if value:
            model_named(value)
        return value

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if self.chat_api_key.get_secret_value() and self.chat_api_key_file:
            raise ValueError("set CHAT_API_KEY or CHAT_API_KEY_FILE, not both")
        return self

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.stream_output_threshold_bytes <= self.artifact_threshold_bytes <= self.max_output_bytes:
            raise ValueError(
                "must grow in this order: STREAM_OUTPUT_THRESHOLD_BYTES, ARTIFACT_THRESHOLD_BYTES, MAX_OUTPUT_BYTES"
            )
        return self

    def model_choice(self) -> ModelChoice | None:
        """
        Raises:
            OSError: if CHAT_API_KEY_FILE cannot be read.
            ValueError: if the provider would need a key, or it or the address is none.
        """
        if not self.chat_model:
            return None
        provider, model = model_named(self.chat_model)
        key = self.chat_api_key.get_secret_value()
        if self.chat_api_key_file:
            key = self.chat_api_key_file.read_text().strip()
        if not key and self.chat_base_url is None:
            raise ValueError(
                "CHAT_MODEL needs CHAT_API_KEY or CHAT_API_KEY_FILE, or CHAT_BASE_URL of an endpoint without keys"
            )
        return ModelChoice(provider, model, self.chat_base_url, key, self.chat_retries, self.chat_request_timeout_s)

    def chat_limits(self) -> ChatLimits:
        return ChatLimits(
            turns=self.chat_concurrency,
            steps=self.chat_max_steps,
            tokens=self.chat_max_tokens,
            reply_tokens=self.chat_reply_tokens,
            result_chars=self.chat_result_chars,
            history_chars=self.chat_history_chars,
            system_prompt=self.chat_system_prompt,
        )

    def output_limits(self) -> OutputLimits:
        return OutputLimits(
            collect=self.stream_output_threshold_bytes,
            offer=self.artifact_threshold_bytes,
            most=self.max_output_bytes,
        )
