"""How a model is named, chosen and opened."""

from __future__ import annotations

import subprocess
import sys

import pytest

from worker.models.opening import ModelChoice, model_named


def choice(*, api_key: str = "key", base_url: str | None = None) -> ModelChoice:
    return ModelChoice("openai", "m", base_url, api_key, retries=2, timeout_s=60)


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("openai:gpt-4o", ("openai", "gpt-4o")),
        ("anthropic:claude-sonnet-5", ("anthropic", "claude-sonnet-5")),
        ("openai:llama3.1:8b", ("openai", "llama3.1:8b")),
    ],
)
def test_a_model_is_named_with_its_provider(text: str, named: tuple[str, str]) -> None:
    """The first colon ends the provider: names of models have colons too."""
    assert model_named(text) == named


@pytest.mark.parametrize(
    "text", ["", "gpt-4o", "openai:", ":gpt-4o", "mistral:large", "OpenAI:gpt-4o", "openai: gpt-4o"]
)
def test_another_form_is_refused_with_the_right_one(text: str) -> None:
    with pytest.raises(ValueError, match="openai:<model> or anthropic:<model>, such as openai:gpt-4o"):
        model_named(text)


def test_a_choice_does_not_show_its_key() -> None:
    """It is logged and stands in tracebacks."""
    assert "sk-secret" not in repr(choice(api_key="sk-secret"))


@pytest.mark.parametrize("key", ["sk-secret\n", "sk secret", "sk-sécret", "“sk-secret”"])
def test_a_key_that_no_header_can_carry_is_refused_untold(key: str) -> None:
    """When the worker starts, and not by an HTTP library that quotes it."""
    with pytest.raises(ValueError, match="no key has") as refusal:
        choice(api_key=key)

    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize(
    "url", ["", "localhost:11434/v1", "ftp://host", "http:///v1", "http://host:0", "http://host:65536", "http://["]
)
def test_a_base_url_that_is_none_is_refused(url: str) -> None:
    """When the worker starts, and not at the first turn."""
    with pytest.raises(ValueError, match=r"base URL is http|[Pp]ort|IPv6"):
        choice(base_url=url)


def test_no_sdk_is_imported_before_a_model_is_opened() -> None:
    """They take seconds and 50 MB, and most workers have no model."""
    program = (
        "import sys, worker.app, worker.models.opening, worker.models.contract;"
        "print([name for name in ('openai', 'anthropic', 'httpx2', 'httpx') if name in sys.modules])"
    )

    assert run(program) == "[]"


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_a_missing_sdk_is_told_with_how_to_install_it(provider: str) -> None:
    """It is an optional part of the worker."""
    program = f"""
import asyncio, sys
from worker.models.opening import ModelChoice, SdkMissing, open_model

sys.modules[{provider!r}] = None  # the import of it fails as that of a missing one

async def main():
    try:
        async with open_model(ModelChoice({provider!r}, "m", None, "key", 2, 60)):
            pass
    except SdkMissing as exc:
        print(exc)

asyncio.run(main())
"""

    assert run(program).endswith(f"pip install mcp-orchestrator-worker[{provider}]")
