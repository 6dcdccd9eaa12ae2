"""The rules and dashboards of k8s/components/monitoring, as Prometheus and Grafana read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import yaml

from tests.promql import Selector, selectors

ROOT: Final = Path(__file__).parents[1]
FOLDER: Final = ROOT / "k8s/components/monitoring"
RULES: Final = FOLDER / "alerts.yaml"
DASHBOARDS: Final = sorted((FOLDER / "dashboards").glob("*.json"))
VARIABLES: Final = {"$__rate_interval": "5m", "$server": ".*"}
"""What Grafana puts in place of its own."""
TARGET_LABELS: Final = frozenset({"job", "instance", "namespace", "pod", "le"})
"""Prometheus's own, and that of the buckets."""


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def recorded() -> set[str]:
    return {rule["record"] for rule in rules() if "record" in rule}


def panels(file: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(file.read_text())["panels"]
    return found


def expressions() -> dict[str, str]:
    """All of them, by where they stand."""
    found = {f"{RULES.name}: {rule.get('alert') or rule['record']}": rule["expr"] for rule in rules()}
    for file in DASHBOARDS:
        for panel in panels(file):
            for target in panel.get("targets", []):
                expression = target["expr"]
                for variable, value in VARIABLES.items():
                    expression = expression.replace(variable, value)
                found[f"{file.name}: {panel['title']} {target['refId']}"] = expression
    return found


def unknown(known: dict[str, frozenset[str]]) -> dict[str, set[Selector]]:
    """What the expressions select that is not there, with its label names; by where it stands.

    `known`: metrics with the names of their labels.
    """
    wrong: dict[str, set[Selector]] = {}
    for place, expression in expressions().items():
        for selector in selectors(expression):
            labels = known.get(selector.metric)
            if labels is None or not selector.labels <= labels | TARGET_LABELS:
                wrong.setdefault(place, set()).add(selector)
    return wrong
