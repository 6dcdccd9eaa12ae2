"""Settings from the environment: all faults at once, no secret in them, exit code 2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings

from common.settings import EXIT_BAD_SETTINGS, BusSettings, load
from common.streams import Limits
from worker.settings import WorkerSettings

OTHER_VALUES: dict[str, tuple[str, Any]] = {
    "nats_url": ("nats://a:1,nats://b:2", "nats://a:1,nats://b:2"),
    "nats_user": ("worker", "worker"),
    "nats_password": ("hunter2", SecretStr("hunter2")),
    "durability": ("power", "power"),
    "nats_replicas": ("3", 3),
    "nats_monitor_url": ("http://a:8222,https://b:8222", "http://a:8222,https://b:8222"),
    "queue_limit": ("7", 7),
    "resume_window_s": ("1.5", 1.5),
    "session_ttl_s": ("60", 60.0),
    "artifact_ttl_s": ("90", 90.0),
    "artifact_store_bytes": ("2000000", 2_000_000),
    "stream_output_threshold_bytes": ("2048", 2_048),
    "artifact_threshold_bytes": ("9000000", 9_000_000),
    "max_output_bytes": ("10000000", 10_000_000),
    "enable_conversation_compression": ("false", False),
    "conversation_store_bytes": ("3000000", 3_000_000),
    "lease_ttl_s": ("4", 4.0),
    "ack_wait_s": ("9", 9.0),
    "log_level": ("warning", "warning"),
    "log_format": ("json", "json"),
    "event_loop": ("asyncio", "asyncio"),
    "garbage_collection": ("python", "python"),
    "memory_ceiling_mb": ("1500", 1500),
    "debug_memory": ("true", True),
    "worker_concurrency": ("3", 3),
    "docker_host": ("tcp://engine:2375", "tcp://engine:2375"),
    "boots_at_once": ("5", 5),
    "drain_timeout_s": ("0", 0.0),
    "reap_period_s": ("0.5", 0.5),
    "chat_model": ("anthropic:some-model", "anthropic:some-model"),
    "chat_base_url": ("http://llm:8000/v1", "http://llm:8000/v1"),
    "chat_api_key": ("sk-1", SecretStr("sk-1")),
    "chat_api_key_file": ("/run/secrets/key", Path("/run/secrets/key")),
    "chat_concurrency": ("7", 7),
    "chat_max_steps": ("5", 5),
    "chat_max_tokens": ("1000", 1000),
    "chat_reply_tokens": ("100", 100),
    "chat_result_chars": ("500", 500),
    "chat_history_chars": ("5000", 5000),
    "chat_system_prompt": ("Be brief.", "Be brief."),
    "chat_retries": ("0", 0),
    "chat_request_timeout_s": ("2.5", 2.5),
    "health_host": ("0.0.0.0", "0.0.0.0"),
    "health_port": ("0", 0),
}
"""For each setting a text that it may have in the environment, other than its default, and its value."""


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OTHER_VALUES:
        monkeypatch.delenv(name.upper(), raising=False)


def refusal(cls: type[BaseSettings], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        load(cls)
    assert ended.value.code == EXIT_BAD_SETTINGS == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err


def test_without_an_environment_a_service_runs_on_one_machine() -> None:
    """The defaults are those of a laptop."""
    settings = load(WorkerSettings)

    assert settings.nats_url == "nats://127.0.0.1:4222"
    assert settings.docker_host == "unix:///var/run/docker.sock"
    assert settings.worker_concurrency == 10
    assert settings.boots_at_once >= 1


def test_the_defaults_of_the_settings_are_those_of_the_streams() -> None:
    """Two places, one truth: a bus that was opened without settings meets no conflict."""
    assert BusSettings().limits() == Limits()


def test_every_setting_is_named_in_the_table_of_this_test() -> None:
    """A new setting needs a line in it."""
    assert set(OTHER_VALUES) == set(WorkerSettings.model_fields)


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_a_setting_is_read_from_its_name_in_upper_case(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And from nowhere else."""
    text, value = OTHER_VALUES[name]
    assert getattr(load(WorkerSettings), name) != value
    monkeypatch.setenv(name.upper(), text)

    assert getattr(load(WorkerSettings), name) == value


def test_every_limit_comes_from_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them is mixed up with another."""
    for name in ("queue_limit", "resume_window_s", "session_ttl_s", "lease_ttl_s", "nats_replicas"):
        monkeypatch.setenv(name.upper(), OTHER_VALUES[name][0])

    assert load(BusSettings).limits() == Limits(
        queue_limit=7, resume_window_s=1.5, session_ttl_s=60, lease_ttl_s=4, replicas=3
    )


@pytest.mark.parametrize(
    ("durability", "replicas", "copies"),
    [
        ("process", None, 1),
        ("power", None, 3),
        ("process", "3", 3),
        ("power", "1", 1),
    ],
)
def test_the_level_says_how_many_copies_there_are_unless_that_is_set(
    durability: str, replicas: str | None, copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One setting for both of what makes the level; NATS_REPLICAS wins at either level."""
    monkeypatch.setenv("DURABILITY", durability)
    if replicas:
        monkeypatch.setenv("NATS_REPLICAS", replicas)
    settings = load(BusSettings)

    assert (settings.replicas, settings.limits().replicas) == (copies, copies)


def test_the_monitoring_addresses_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blanks and slashes at the end do no harm."""
    assert BusSettings().monitor_addresses == []
    monkeypatch.setenv("NATS_MONITOR_URL", "http://a:8222/, https://[::1]:8222")

    assert load(BusSettings).monitor_addresses == ["http://a:8222", "https://[::1]:8222"]


@pytest.mark.parametrize(
    "address",
    ["a:8222", "nats://a:4222", "http://", "http://a:port", "http://me:hunter2@a:8222", "http://a:8222/varz", "", " "],
)
def test_a_monitoring_address_that_is_none_is_a_fault_that_says_which(
    address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its number: what stands there may hold a secret."""
    monkeypatch.setenv("NATS_MONITOR_URL", f"http://b:8222,{address}")

    printed = refusal(BusSettings, capsys)

    assert "  NATS_MONITOR_URL: Value error, address 2 is not of the form http://host:port\n" in printed
    assert "hunter2" not in printed


def test_a_level_that_does_not_exist_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is guessed."""
    monkeypatch.setenv("DURABILITY", "disk")

    assert "DURABILITY: Input should be 'process' or 'power' (got 'disk')" in refusal(BusSettings, capsys)


def test_all_faults_are_told_together_with_their_names_and_values(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One restart mends them all."""
    monkeypatch.setenv("QUEUE_LIMIT", "0")
    monkeypatch.setenv("NATS_REPLICAS", "three")
    monkeypatch.setenv("LOG_LEVEL", "loud")
    monkeypatch.setenv("WORKER_CONCURRENCY", "")

    assert refusal(WorkerSettings, capsys).splitlines() == [
        "WorkerSettings: 4 setting(s) cannot be used:",
        "  NATS_REPLICAS: Input should be a valid integer, unable to parse string as an integer (got 'three')",
        "  QUEUE_LIMIT: Input should be greater than or equal to 1 (got '0')",
        "  LOG_LEVEL: Input should be 'debug', 'info', 'warning' or 'error' (got 'loud')",
        "  WORKER_CONCURRENCY: Input should be a valid integer, unable to parse string as an integer (got '')",
    ]


class Guarded(BaseSettings):
    """With what may hold a secret."""

    broker_url: str = Field(default="", max_length=3)
    api_key: int = 0
    low: int = 0
    high: int = 1

    @model_validator(mode="after")
    def _ordered(self) -> Guarded:
        if self.low > self.high:
            raise ValueError("LOW is above HIGH")
        return self


def test_a_value_that_may_be_a_secret_is_not_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Keys, and URLs, in which credentials may stand."""
    monkeypatch.setenv("BROKER_URL", "nats://user:hunter2@host")
    monkeypatch.setenv("API_KEY", "hunter2")

    printed = refusal(Guarded, capsys)

    assert "BROKER_URL: " in printed
    assert "API_KEY: " in printed
    assert "hunter2" not in printed


def test_a_fault_of_several_settings_together_prints_none_of_their_values(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The secret ones are among them."""
    monkeypatch.setenv("LOW", "2")
    monkeypatch.setenv("API_KEY", "123456")

    printed = refusal(Guarded, capsys)

    assert "(combination): Value error, LOW is above HIGH" in printed
    assert "123456" not in printed


def test_settings_cannot_be_changed() -> None:
    """They are read once."""
    with pytest.raises(ValidationError):
        load(BusSettings).queue_limit = 5  # type: ignore[misc]
