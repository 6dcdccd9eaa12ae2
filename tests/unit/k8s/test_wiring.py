"""Selectors, ports, budgets, policies and autoscalers point at what is there."""

from __future__ import annotations

from typing import Any

import pytest

from common import catalog, subjects
from common.settings import BusSettings
from tests.unit.k8s.rendering import K8S, OVERLAYS, Case, Object, case_id, cases, containers, of_kind, one, pods, render


def matching(objects: list[Object], labels: dict[str, str]) -> list[Object]:
    return [pod for _, pod in pods(objects) if labels.items() <= pod["metadata"].get("labels", {}).items()]


def ports(pod: Object) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for each in containers(pod) for port in each.get("ports", [])}


@pytest.mark.parametrize("case", cases(), ids=case_id)
def test_selectors_find_pods_and_services_their_ports(case: Case) -> None:
    """Of Services, budgets and everything that makes pods."""
    objects = render(case)
    for each in objects:
        name = f"{each['kind']}/{each['metadata']['name']}"
        if each["kind"] in ("Deployment", "StatefulSet"):
            wanted = each["spec"]["selector"]["matchLabels"]
            assert wanted.items() <= each["spec"]["template"]["metadata"]["labels"].items(), name
        if each["kind"] == "PodDisruptionBudget":
            assert len(matching(objects, each["spec"]["selector"]["matchLabels"])) == 1, name
        if each["kind"] == "Service":
            found = matching(objects, each["spec"]["selector"])
            assert len(found) == 1, name
            for port in each["spec"]["ports"]:
                target = port["targetPort"]
                known: set[Any] = {*ports(found[0]), *ports(found[0]).values()}
                assert target in known, f"{name}: {target}"


@pytest.mark.parametrize("case", cases(), ids=case_id)
def test_what_a_pod_mounts_is_there(case: Case) -> None:
    """ConfigMaps and claims by name; every mount has its volume, every volume a mount."""
    objects = render(case)
    maps = {each["metadata"]["name"] for each in of_kind(objects, "ConfigMap")}
    accounts = {each["metadata"]["name"] for each in of_kind(objects, "ServiceAccount")}
    for name, pod in pods(objects):
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
        mounted = {mount["name"] for each in containers(pod) for mount in each.get("volumeMounts", [])}
        claimed = {"data"} if name == "nats" else set()
        assert mounted - claimed == volumes.keys(), name
        assert {volume["configMap"]["name"] for volume in volumes.values() if "configMap" in volume} <= maps, name
        assert pod["spec"].get("serviceAccountName") in accounts, name


@pytest.mark.parametrize("case", cases(), ids=case_id)
def test_nothing_is_let_through_but_what_is_named(case: Case) -> None:
    """Default deny in both directions; every other policy is for pods that exist, and named ports are theirs."""
    objects = render(case)
    policies = of_kind(objects, "NetworkPolicy")
    deny = one(objects, "NetworkPolicy", "default-deny")["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for policy in policies:
        name, spec = policy["metadata"]["name"], policy["spec"]
        chosen = spec["podSelector"].get("matchLabels")
        if not chosen:
            continue
        found = matching(objects, chosen)
        own_nats = any(each["metadata"]["name"] == "nats" for each in of_kind(objects, "StatefulSet"))
        assert found or (chosen.get("app.kubernetes.io/name") == "nats" and not own_nats), name
        for rule in spec.get("ingress", []):
            for port in rule.get("ports", []):
                assert not found or all(port["port"] in ports(pod) for pod in found), f"{name}: {port}"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_who_logs_in_to_nats_may_reach_it(overlay: str) -> None:
    """The label that the policies ask for is on every pod with NATS_USER."""
    for name, pod in pods(render((overlay,))):
        variables = {variable["name"] for each in containers(pod) for variable in each.get("env", [])}
        if "NATS_USER" in variables:
            assert pod["metadata"]["labels"].get("mcp-orchestrator/uses-nats") == "true", name


@pytest.mark.parametrize(("name", "least", "most"), [("gateway", 2, 50), ("worker", 1, 100)])
def test_the_autoscalers_keep_to_their_bounds(name: str, least: int, most: int) -> None:
    """CPU 70 %, memory 80 %; slow on the way down. The Deployment itself says no number."""
    objects = render(("prod",))
    spec = one(objects, "HorizontalPodAutoscaler", name)["spec"]
    targets = {}
    for metric in spec["metrics"]:
        resource = metric.get("resource") or metric["containerResource"]
        targets[resource["name"]] = resource["target"]["averageUtilization"]

    assert (spec["minReplicas"], spec["maxReplicas"]) == (least, most)
    assert targets == {"cpu": 70, "memory": 80}
    assert spec["behavior"]["scaleDown"]["stabilizationWindowSeconds"] >= 300
    assert "replicas" not in one(objects, "Deployment", name)["spec"]


def test_keda_takes_the_place_of_the_workers_autoscaler() -> None:
    """A trigger for each server and for chat turns; the wait before a scale-in is not shorter than ACK_WAIT_S."""
    objects = render(("prod", "keda"))
    spec = one(objects, "ScaledObject", "worker")["spec"]
    down = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
    servers = catalog.read(K8S / "base/catalog/servers.yaml")

    assert [each["metadata"]["name"] for each in of_kind(objects, "HorizontalPodAutoscaler")] == ["gateway"]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (1, 100)
    assert {trigger["metadata"]["consumer"] for trigger in spec["triggers"]} == {*servers, subjects.CHAT}
    assert down["stabilizationWindowSeconds"] >= BusSettings().ack_wait_s
    assert 1 <= spec["fallback"]["replicas"] <= 100
    host = one(objects, "Service", "nats-headless")["metadata"]
    for trigger in spec["triggers"]:
        asked = trigger["metadata"]["natsServerMonitoringEndpoint"]
        assert asked == f"{host['name']}.{host['namespace']}.svc:8222"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_our_images_have_the_names_that_skaffold_builds(overlay: str) -> None:
    """Their tags apart."""
    images = {each["image"].split(":")[0] for _, pod in pods(render((overlay,))) for each in containers(pod)}

    assert {image for image in images if "/" in image and not image.startswith("natsio/")} == {
        "mcp-orchestrator/gateway",
        "mcp-orchestrator/worker",
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_restore_runs_in_the_pod_of_the_backup(overlay: str) -> None:
    """README.md puts another command into its first container: the script, the backups and the operator are there."""
    objects = render((overlay,))
    pod = dict(pods(objects))["nats-backup"]["spec"]
    container = pod["containers"][0]
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    scripts = one(objects, "ConfigMap", volumes[mounted["/scripts"]]["configMap"]["name"])["data"]
    used = {variable["name"] for variable in container["env"]}

    assert scripts == {path.name: path.read_text() for path in (K8S / "base/nats").glob("*.sh")}
    assert "restore.sh" in scripts
    assert volumes[mounted["/backups"]]["persistentVolumeClaim"]["claimName"] == "nats-backups"
    assert {"NATS_URL", "NATS_USER", "NATS_PASSWORD"} <= used
    assert "/spec/template/spec/containers/0/command" in (K8S / "README.md").read_text()
