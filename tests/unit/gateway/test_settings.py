"""The gateway's settings: what is refused before anything is opened."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from common.settings import load
from gateway.settings import DEVELOPMENT_KEY, GatewaySettings, hash_key

KEYS = {"acme": hash_key("sesame")}


def faults(**values: object) -> str:
    with pytest.raises(ValidationError) as refused:
        GatewaySettings.model_validate(values)
    return str(refused.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_on_a_loopback_address_the_development_key_works_without_settings(host: str) -> None:
    """Trying it out needs no set-up."""
    assert GatewaySettings(host=host).api_keys == {"development": hash_key(DEVELOPMENT_KEY)}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "gateway.example"])
def test_elsewhere_the_development_key_is_a_fault_that_says_what_to_set(host: str) -> None:
    """A public key on a public address would let everybody in: by default, or set on purpose."""
    for keys in ({}, {"api_keys": {"me": hash_key(DEVELOPMENT_KEY)}}):
        assert f"the development key is public and HOST is {host}: set API_KEYS" in faults(host=host, **keys)


def test_keys_of_ones_own_open_any_address() -> None:
    """Then the address does not matter."""
    assert GatewaySettings(host="0.0.0.0", api_keys=KEYS).api_keys == KEYS


def test_keys_are_read_from_the_environment_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """As API_KEYS, beside the names of the old system."""
    monkeypatch.setenv("API_KEYS", json.dumps(KEYS))
    monkeypatch.setenv("JOB_TIMEOUT_MS", "5")

    settings = load(GatewaySettings)

    assert (settings.api_keys, settings.job_timeout_ms) == (KEYS, 5)


def test_limits_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rate of 0 sets none."""
    for name, value in {"TENANT_RATE": "0", "TENANT_BURST": "7", "MAX_JOBS_IN_FLIGHT": "9"}.items():
        monkeypatch.setenv(name, value)

    settings = load(GatewaySettings)

    assert (settings.tenant_rate, settings.tenant_burst, settings.max_jobs_in_flight) == (0, 7, 9)


@pytest.mark.parametrize(
    ("setting", "value", "fault"),
    [
        ("tenant_rate", -1, "greater than or equal to 0"),
        ("tenant_rate", 1e-9, "must be 0, which sets no limit, or at least 0.01"),
        ("tenant_rate", "fast", "valid number"),
        ("tenant_rate", "inf", "less than or equal to"),
        ("tenant_rate", "nan", "less than or equal to"),
        ("tenant_burst", 0, "greater than or equal to 1"),
        ("max_jobs_in_flight", 0, "greater than or equal to 1"),
        ("max_jobs_in_flight", 1.5, "valid integer"),
    ],
)
def test_a_limit_that_cannot_be_used_is_a_fault(setting: str, value: object, fault: str) -> None:
    """No call at all would pass, or nobody could tell which."""
    refused = faults(**{setting: value})

    assert setting in refused
    assert fault in refused


@pytest.mark.parametrize(
    ("text", "operators"), [("ops", {"ops"}), (" ops, dba ,", {"ops", "dba"}), ("", set()), (",", set())]
)
def test_operators_are_read_from_the_environment_as_a_list(
    monkeypatch: pytest.MonkeyPatch, text: str, operators: set[str]
) -> None:
    """None at all is a choice, too; without the setting it is the tenant of the development key."""
    assert load(GatewaySettings).operators == {"development"}
    monkeypatch.setenv("OPERATORS", text)

    assert load(GatewaySettings).operators == operators


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ("not json", "must be a JSON object"),
        ("[]", "valid dictionary"),
        ({}, "at least one tenant"),
        ({"acme": "sesame"}, "not a SHA-256 in 64 lower-case hex digits: the entry of acme"),
        ({"acme": hash_key("a").upper()}, "the entry of acme"),
        ({"acme": hash_key("a") + "\n"}, "the entry of acme"),
        ({"acme": hash_key("a"), "umbra": hash_key("a")}, "two tenants have the same key"),
    ],
)
def test_keys_that_cannot_be_used_are_a_fault(keys: object, fault: str) -> None:
    """Nothing is guessed, and no tenant is dropped in silence."""
    assert fault in faults(api_keys=keys)


def test_a_fault_never_shows_a_key(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Somebody may have put the key itself where its hash belongs."""
    monkeypatch.setenv("API_KEYS", '{"acme": "sesame"}')

    with pytest.raises(SystemExit) as exited:
        load(GatewaySettings)

    assert exited.value.code == 2
    assert "sesame" not in capsys.readouterr().err
