"""The component monitoring: what it scrapes is there, may be reached, and has the names that the alerts ask for."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from tests.monitoring import RULES, expressions
from tests.unit.k8s.rendering import OVERLAYS, ROOT, Object, of_kind, one, pods, render

PROMETHEUS = {"kubernetes.io/metadata.name": "monitoring"}


def scraped(objects: list[Object]) -> dict[str, tuple[Object, str]]:
    """By the `job` that Prometheus gives it: a pod, and the port's name there."""
    found = {}
    for monitor in of_kind(objects, "PodMonitor"):
        (pod,) = chosen(objects, monitor["spec"]["selector"])
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        found[pod["metadata"]["labels"][monitor["spec"]["jobLabel"]]] = (pod, endpoint["port"])
    for monitor in of_kind(objects, "ServiceMonitor"):
        labels = monitor["spec"]["selector"]["matchLabels"]
        (service,) = [
            each for each in of_kind(objects, "Service") if labels.items() <= each["metadata"]["labels"].items()
        ]
        (endpoint,) = monitor["spec"]["endpoints"]
        (port,) = [each for each in service["spec"]["ports"] if each["name"] == endpoint["port"]]
        (pod,) = chosen(objects, {"matchLabels": service["spec"]["selector"]})
        found[service["metadata"]["labels"][monitor["spec"]["jobLabel"]]] = (pod, port["targetPort"])
    return found


def chosen(objects: list[Object], selector: dict[str, Any]) -> list[Object]:
    wanted = selector["matchLabels"].items()
    return [pod for _, pod in pods(objects) if wanted <= pod["metadata"]["labels"].items()]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_gateways_workers_and_nats_are_scraped_where_they_tell_their_metrics(overlay: str) -> None:
    """At ports that their containers name."""
    found = scraped(render((overlay, "monitoring")))
    numbers = {
        job: [
            port["containerPort"]
            for each in pod["spec"]["containers"]
            for port in each.get("ports", [])
            if port["name"] == name
        ]
        for job, (pod, name) in found.items()
    }

    assert numbers == {"gateway": [8080], "worker": [8081], "nats": [7777]}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_prometheus_gets_through_to_them_and_to_nothing_else(overlay: str) -> None:
    """From its namespace; a gateway's port is open to all."""
    objects = render((overlay, "monitoring"))
    for job, (pod, port) in scraped(objects).items():
        let_in = [
            each["port"]
            for policy in of_kind(objects, "NetworkPolicy")
            if policy["spec"]["podSelector"].get("matchLabels", {None: None}).items()
            <= pod["metadata"]["labels"].items()
            for rule in policy["spec"].get("ingress", [])
            if {"namespaceSelector": {"matchLabels": PROMETHEUS}} in rule.get("from", []) or "from" not in rule
            for each in rule["ports"]
        ]
        assert let_in == [port], job


def test_the_exporter_stands_behind_the_server_that_it_measures() -> None:
    """`kubectl logs nats-0` is the server's; its address is the pod's own, so no policy and no password is needed."""
    server, exporter = dict(pods(render(("prod", "monitoring"))))["nats"]["spec"]["containers"]

    assert (server["name"], exporter["name"]) == ("nats", "exporter")
    assert exporter["args"][-1] == "http://127.0.0.1:8222"
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["nats-exporter"]
    assert exporter["image"] == compose["image"]
    assert set(compose["command"][:-1]) <= set(exporter["args"])


def test_dashboards_are_maps_that_grafanas_sidecar_takes() -> None:
    """By the label; each file of the folder is in it."""
    found = one(render(("prod", "monitoring")), "ConfigMap", "grafana-dashboards")

    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert set(found["data"]) == {file.name for file in (ROOT / "k8s/components/monitoring/dashboards").glob("*.json")}


def test_compose_gives_the_same_names_to_what_it_scrapes() -> None:
    """Rules and dashboards ask for `job`, and both ways of running have the same ones."""
    config = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text())
    asked = {
        name
        for expression in expressions().values()
        for names in re.findall(r'\bjob=~?"([^"]*)"', expression)
        for name in names.split("|")
    }

    assert {each["job_name"] for each in config["scrape_configs"]} == scraped(render(("prod", "monitoring"))).keys()
    assert asked <= {each["job_name"] for each in config["scrape_configs"]}
    assert config["rule_files"] == [f"/etc/prometheus/{RULES.name}"]
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    for mount in services["prometheus"]["volumes"] + services["grafana"]["volumes"]:
        source, _, _ = mount.partition(":")
        assert not source.startswith("./") or (ROOT / source).exists(), mount
