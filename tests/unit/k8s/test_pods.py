"""What pods may do, how they start, and how they end."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from common import catalog
from gateway.__main__ import LEAVING_S as GATEWAY_LEAVING_S
from standalone.nats_server import BINARY
from tests.unit.k8s.rendering import (
    K8S,
    OVERLAYS,
    ROOT,
    Case,
    Object,
    case_id,
    cases,
    container,
    containers,
    environment,
    of_kind,
    one,
    pods,
    render,
)
from worker.__main__ import LEAVING_S as WORKER_LEAVING_S

PRIVILEGED = {"engine"}
"""The one documented exception from restricted: the engine beside a worker."""


def weaknesses(pod: Object) -> list[str]:
    """Where a pod falls short of Pod Security `restricted`, and of a read-only root."""
    found = []
    outer = pod["spec"].get("securityContext", {})
    if outer.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        found.append("seccomp")
    if pod["spec"].get("automountServiceAccountToken") is not False:
        found.append("token")
    if any(pod["spec"].get(name) for name in ("hostNetwork", "hostPID", "hostIPC")):
        found.append("host namespaces")
    for each in containers(pod):
        if each["name"] in PRIVILEGED:
            continue
        context = outer | each.get("securityContext", {})
        wanted = {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        found += [f"{each['name']}: {name}" for name, value in wanted.items() if context.get(name) != value]
    return found


@pytest.mark.parametrize("case", cases(), ids=case_id)
def test_every_pod_is_restricted_but_for_the_engine(case: Case) -> None:
    """No token, no root, no capability, nothing to write to; and limits."""
    for name, pod in pods(render(case)):
        assert weaknesses(pod) == [], name
        for each in containers(pod):
            assert {"requests", "limits"} <= each.get("resources", {}).keys(), f"{name}/{each['name']}"


def test_without_an_engine_in_the_pod_the_namespace_refuses_privileged_pods() -> None:
    """With the remote engine restricted holds without exception."""
    objects = render(("prod", "remote-engine"))
    labels = one(objects, "Namespace", "mcp-orchestrator")["metadata"]["labels"]

    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    assert not [each for _, pod in pods(objects) for each in containers(pod) if each["name"] == "engine"]
    assert not [volume for _, pod in pods(objects) for volume in pod["spec"].get("volumes", []) if "hostPath" in volume]


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("name", ["gateway", "worker", "nats"])
def test_startup_liveness_and_readiness_ask_different_things(overlay: str, name: str) -> None:
    """Three probes, on a port that the container names."""
    its = container(render((overlay,)), name, name)
    asked = [its[probe]["httpGet"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")]

    assert len({each["path"] for each in asked}) == 3
    assert {each["port"] for each in asked} <= {port["name"] for port in its["ports"]}


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize(("name", "leaving_s"), [("gateway", GATEWAY_LEAVING_S), ("worker", WORKER_LEAVING_S)])
def test_the_grace_period_is_longer_than_the_way_out(overlay: str, name: str, leaving_s: float) -> None:
    """preStop, the drain, and leaving what is left, before the kernel ends it."""
    objects = render((overlay,))
    its = container(objects, name, name)
    pause_s = its.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    drain_s = float(environment(objects, name, name)["DRAIN_TIMEOUT_S"])

    assert dict(pods(objects))[name]["spec"]["terminationGracePeriodSeconds"] > pause_s + drain_s + leaving_s


def test_a_nats_server_has_the_time_to_be_a_lame_duck() -> None:
    """The grace period is longer than what nats.conf gives its clients to go elsewhere."""
    config = (K8S / "base/nats/nats.conf").read_text()
    seconds = [int(each) for each in re.findall(r"^lame_duck_\w+: (\d+)s$", config, re.MULTILINE)]

    assert len(seconds) == 2
    assert dict(pods(render(("prod",))))["nats"]["spec"]["terminationGracePeriodSeconds"] > sum(seconds)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_rolling_update_takes_nothing_away_first(overlay: str) -> None:
    """maxUnavailable 0."""
    for each in of_kind(render((overlay,)), "Deployment"):
        assert each["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_the_engine_is_up_before_the_images_and_these_before_the_worker() -> None:
    """A native sidecar with a startup probe, then the puller."""
    engine, puller = dict(pods(render(("prod",))))["worker"]["spec"]["initContainers"]

    assert (engine["name"], engine["restartPolicy"]) == ("engine", "Always")
    assert "startupProbe" in engine
    assert puller["name"] == "pull-images"
    assert "restartPolicy" not in puller


def test_every_image_of_the_catalog_is_pulled() -> None:
    """A worker pulls nothing itself."""
    wanted = {spec.image for spec in catalog.read(K8S / "base/catalog/servers.yaml").values()}

    assert set((K8S / "base/worker/images.txt").read_text().split()) == wanted


def test_the_catalog_is_the_one_at_the_top() -> None:
    """Kustomize reads nothing above itself, so there is a copy."""
    assert (K8S / "base/catalog/servers.yaml").read_text() == (ROOT / "servers.yaml").read_text()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nats_server_takes_its_configuration(overlay: str, tmp_path: Path) -> None:
    """The rendered files, with the environment of the pod."""
    objects = render((overlay,))
    (config,) = [each for each in of_kind(objects, "ConfigMap") if each["metadata"]["name"].startswith("nats-config")]
    for name, text in config["data"].items():
        (tmp_path / name).write_text(text)
    variables = environment(objects, "nats", "nats")
    secrets = {name: "a-password" for name, value in variables.items() if not value}
    env = {"PATH": os.environ["PATH"], **variables, **secrets, "POD_NAME": "nats-0"}

    done = subprocess.run([BINARY, "--config", tmp_path / "nats.conf", "-t"], env=env, capture_output=True, check=False)

    assert done.returncode == 0, done.stderr.decode()


def test_production_syncs_before_it_acknowledges_and_keeps_three_copies() -> None:
    """DURABILITY=power means both."""
    objects = render(("prod",))
    settings = one(objects, "ConfigMap", "orchestrator")["data"]

    assert environment(objects, "nats", "nats")["NATS_SYNC_INTERVAL"] == "always"
    assert (settings["DURABILITY"], settings["NATS_REPLICAS"]) == ("power", "3")
    assert one(objects, "StatefulSet", "nats")["spec"]["replicas"] == 3
    assert len(settings["NATS_MONITOR_URL"].split(",")) == 3
