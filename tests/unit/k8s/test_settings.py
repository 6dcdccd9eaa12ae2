"""The environment of the pods is that of the settings classes, both ways."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
import yaml

from common.settings import BusSettings, load
from gateway.settings import GatewaySettings
from tests.unit.k8s.rendering import K8S, OVERLAYS, Case, case_id, cases, environment, of_kind, one, render
from worker.settings import WorkerSettings

SERVICES: dict[str, type[BusSettings]] = {"gateway": GatewaySettings, "worker": WorkerSettings}

GOOD_DEFAULTS = {
    "gateway": """
        ack_wait_s artifact_store_bytes artifact_ttl_s chat_timeout_ms conversation_store_bytes
        enable_conversation_compression event_stream_ping_interval_s job_timeout_ms lease_ttl_s log_level
        max_jobs_in_flight max_request_bytes max_requests_per_connection max_sessions_per_connection max_upload_bytes
        ping_interval_s port queue_limit resume_window_s send_budget_bytes session_ttl_s stalled_client_s
        sweep_period_s tenant_burst tenant_rate
        debug_memory event_loop garbage_collection
    """,
    "worker": """
        ack_wait_s artifact_store_bytes artifact_threshold_bytes artifact_ttl_s chat_api_key_file chat_base_url
        chat_concurrency chat_history_chars chat_max_steps chat_max_tokens chat_model chat_reply_tokens
        chat_request_timeout_s chat_result_chars chat_retries chat_system_prompt conversation_store_bytes
        enable_conversation_compression health_port lease_ttl_s log_level max_output_bytes queue_limit reap_period_s
        resume_window_s session_ttl_s stream_output_threshold_bytes
        debug_memory event_loop garbage_collection
    """,
}
"""Settings whose default is right in a cluster too. Each other one must be set: a new setting is put here or there."""


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("name", SERVICES)
def test_every_variable_is_a_setting(overlay: str, name: str) -> None:
    """A name with a slip of the pen would be ignored in silence."""
    known = {field.upper() for field in SERVICES[name].model_fields}

    assert environment(render((overlay,)), name, name).keys() - known == set()


@pytest.mark.parametrize("name", SERVICES)
def test_every_setting_is_set_or_has_a_default_that_fits_a_cluster(name: str) -> None:
    """And none that is set is in the list of those that need not be, but for what dev sets."""
    fields = {field.upper() for field in SERVICES[name].model_fields}
    good = set(GOOD_DEFAULTS[name].upper().split())
    given = environment(render(("prod",)), name, name).keys()

    assert fields - given - good == set(), "set it in k8s/base, or say above that its default fits"
    assert good - fields == set()
    assert good & given == set()


@pytest.mark.parametrize("case", cases(), ids=case_id)
def test_the_common_settings_are_everybodys(case: Case) -> None:
    """The ConfigMap reaches gateway, worker and catalog alike. OpenTelemetry's variables are its own, not settings."""
    names = one(render(case), "ConfigMap", "orchestrator")["data"].keys()
    ours = {name for name in names if not name.startswith("OTEL_")}

    assert ours - {field.upper() for field in BusSettings.model_fields} == set()
    assert (ours != names) == ("tracing" in case)


@pytest.mark.parametrize("name", SERVICES)
def test_the_settings_of_dev_can_be_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values too, not names alone."""
    for variable, value in environment(render(("dev",)), name, name).items():
        monkeypatch.setenv(variable, value)

    assert load(SERVICES[name]).log_format == "json"


def test_the_secrets_that_are_made_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """secrets.sh prints what production leaves out; the keys themselves are not in it."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not here")
    done = subprocess.run([K8S / "secrets.sh", "acme", "operator"], capture_output=True, text=True, check=True)
    secrets = {each["metadata"]["name"]: each["stringData"] for each in yaml.safe_load_all(done.stdout)}
    for variable, value in environment(render(("prod",)), "gateway", "gateway").items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("API_KEYS", secrets["orchestrator"]["API_KEYS"])
    keys = re.findall(r": ([0-9a-f]{64})$", done.stderr, re.MULTILINE)

    assert load(GatewaySettings).api_keys.keys() == {"acme", "operator"}
    assert secrets["nats-users"].keys() == {"gateway-password", "worker-password", "operator-password"}
    assert len(keys) == 2
    assert not any(key in done.stdout for key in keys)


def test_the_placeholders_let_no_gateway_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who forgets to make keys is told so."""
    text = (K8S / "base/kustomization.yaml").read_text()
    (placeholder,) = re.findall(r"API_KEYS=(.*)$", text, re.MULTILINE)
    monkeypatch.setenv("API_KEYS", placeholder)

    with pytest.raises(SystemExit):
        load(GatewaySettings)


@pytest.mark.parametrize("case", cases(), ids=case_id)
def test_no_config_map_has_a_secret(case: Case) -> None:
    """Neither by the name of a key, nor as a value written out in a file; $NAMES of the environment are none."""
    for each in of_kind(render(case), "ConfigMap"):
        for name, value in each.get("data", {}).items():
            assert not re.search(r"(?i)key|password|token|secret", name), f"{each['metadata']['name']}: {name}"
            written = re.findall(r"""(?im)^\s*(?:password|token)\s*[:=]\s*["']?(?!\$)\S+""", value)
            assert written == [], each["metadata"]["name"]


def test_production_has_no_secret_in_its_manifests() -> None:
    """They are made apart, and no apply overwrites them."""
    assert of_kind(render(("prod",)), "Secret") == []
    assert of_kind(render(("prod", "external-secrets")), "Secret") == []
    assert of_kind(render(("dev", "external-secrets")), "Secret") == []
