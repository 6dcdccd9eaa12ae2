"""Alert rules, dashboards, the runbook and the table of metrics say the same."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client import Counter, Gauge, Histogram
from typer.main import get_command

from client.cli import app
from common import metrics
from tests.monitoring import DASHBOARDS, FOLDER, ROOT, RULES, expressions, panels, recorded, rules, unknown
from tests.nats_exporter import EXPORTED
from tests.programs import program
from tests.promql import Selector, selectors

RUNBOOK = (ROOT / "docs/runbook.md").read_text()
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", RUNBOOK, re.MULTILINE | re.DOTALL))
METRICS_TABLE = re.findall(r"^\| `(\w+)` \| (\w+) \|(.*?)\| (.+) \|$", (ROOT / "docs/metrics.md").read_text(), re.M)
ALERTS = [rule for rule in rules() if "alert" in rule]
PROCESS = {
    "up": frozenset[str](),
    "process_resident_memory_bytes": frozenset[str](),
    "process_cpu_seconds_total": frozenset[str](),
    "process_open_fds": frozenset[str](),
}
"""Prometheus's own, and those of the client library."""


def registered() -> dict[str, Counter | Gauge | Histogram]:
    """By the name that stands in a scrape."""
    found = [value for value in vars(metrics).values() if isinstance(value, Counter | Gauge | Histogram)]
    return {each._name + ("_total" if isinstance(each, Counter) else ""): each for each in found}


def ours() -> dict[str, frozenset[str]]:
    """Every sample's name with its labels, as our metrics and the recording rules make them."""
    found = dict.fromkeys(recorded(), frozenset({"server"}))
    for name, metric in registered().items():
        for suffix in ("_bucket", "_sum", "_count") if isinstance(metric, Histogram) else ("",):
            found[name + suffix] = frozenset(metric._labelnames)
    return found


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run([program("promtool"), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_are_rules() -> None:
    """As Prometheus reads them."""
    promtool("check", "rules", RULES)


def test_every_alert_goes_off_when_it_should_and_not_before() -> None:
    """alerts_test.yaml has series for each."""
    promtool("test", "rules", FOLDER / "alerts_test.yaml")


def test_every_alert_is_tested_both_ways() -> None:
    """Once it goes off; once it does not, though there is something to see."""
    tested = [
        (case["alertname"], bool(case.get("exp_alerts")))
        for group in yaml.safe_load((FOLDER / "alerts_test.yaml").read_text())["tests"]
        for case in group["alert_rule_test"]
    ]

    assert {name for name, fires in tested if fires} == {alert["alert"] for alert in ALERTS}
    assert {name for name, fires in tested if not fires} == {alert["alert"] for alert in ALERTS}


def test_the_operators_rules_are_the_same() -> None:
    """prometheusrule.yaml is alerts.yaml below `spec`; change that one, and indent it anew."""
    text = (FOLDER / "prometheusrule.yaml").read_text()
    indented = "".join(f"  {line}" if line.strip() else line for line in RULES.read_text().splitlines(keepends=True))

    assert text.partition("\nspec:\n")[2] == indented
    assert yaml.safe_load(text)["spec"] == yaml.safe_load(RULES.read_text())


def test_every_alert_has_a_section_of_the_runbook_and_every_section_an_alert() -> None:
    """In the order of the file; the link is to it."""
    assert list(SECTIONS) == [alert["alert"] for alert in ALERTS]
    for alert in ALERTS:
        assert alert["annotations"]["runbook_url"] == f"docs/runbook.md#{alert['alert'].lower()}"
        assert alert["annotations"]["summary"]
        assert alert["labels"]["severity"] in ("warning", "critical")


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_says_what_it_means_how_to_see_it_and_what_to_do(name: str) -> None:
    """With commands, and links that lead somewhere."""
    text = SECTIONS[name]

    assert re.findall(r"^\*\*(.+?):\*\*", text, re.MULTILINE) == ["It means", "See", "Do"]
    assert re.search(r"\*\*See:\*\*\n\n```\n.+?\n```\n\n\*\*Do:\*\*", text, re.DOTALL)
    assert {link.lower() for link in re.findall(r"\]\(#(\w+)\)", text)} <= {each.lower() for each in SECTIONS}


def test_the_runbook_names_commands_that_there_are() -> None:
    """Of our own command line; those of nats are run against a real server (tests/e2e/test_metrics.py)."""
    known = get_command(app)
    for line in set(re.findall(r"^orchestrator (.+)$|`orchestrator (.+?)`", RUNBOOK, re.MULTILINE)):
        words = "".join(line).split()
        command = known
        while words and (named := getattr(command, "commands", {}).get(words[0])):
            command = named
            words = words[1:]
        assert not hasattr(command, "commands"), line
        options = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= options, line


def test_a_dashboard_has_an_id_panels_and_the_datasource_of_its_reader() -> None:
    """Grafana takes the first of two with one id, in silence."""
    boards = [json.loads(file.read_text()) for file in DASHBOARDS]

    assert len({board["uid"] for board in boards}) == len(boards) == 3
    for file in DASHBOARDS:
        ids = [panel["id"] for panel in panels(file)]
        assert len(set(ids)) == len(ids)
        for panel in panels(file):
            assert panel["type"] == "row" or panel["datasource"]["uid"] == "${datasource}"
            assert panel["type"] == "row" or panel["targets"]


def test_every_expression_of_a_dashboard_is_promql(tmp_path: Path) -> None:
    """promtool reads them as rules."""
    file = tmp_path / "rules.yaml"
    as_rules = [
        {"record": "of:a:panel", "expr": expression, "labels": {"place": place}}
        for place, expression in expressions().items()
    ]
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": as_rules}]}))

    promtool("check", "rules", file)


def test_every_metric_that_is_asked_for_is_one_with_those_labels() -> None:
    """Of rules and dashboards; tests/e2e/test_metrics.py holds them against a real scrape."""
    exported = {name: each.labels for name, each in EXPORTED.items()}

    assert unknown(ours() | exported | PROCESS) == {}


def test_every_metric_of_ours_is_on_a_dashboard_or_in_a_rule() -> None:
    """Or nobody would ever see it."""
    shown = {selector.metric for expression in expressions().values() for selector in selectors(expression)}

    assert [name for name in registered() if not {name, f"{name}_bucket"} & shown] == []


def test_the_document_lists_every_metric_and_no_other() -> None:
    """With its type and its labels."""
    documented = {name: (kind, re.findall(r"`(\w+)`", labels)) for name, kind, labels, _ in METRICS_TABLE}
    actual = {name: (each._type, list(each._labelnames)) for name, each in registered().items()}

    assert documented == actual
    assert len(METRICS_TABLE) == len(actual)


def test_names_end_in_their_unit_and_counters_in_total() -> None:
    """As Prometheus asks for; a gauge of things is named by the things."""
    for name, metric in registered().items():
        assert isinstance(metric, Counter) == name.endswith("_total"), name
        assert isinstance(metric, Histogram) == name.endswith("_seconds"), name
        assert {"session", "job", "tool", "tenant"} & set(metric._labelnames) == set(), name


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ("up", {Selector("up", frozenset())}),
        ('sum by (server, le) (rate(a_bucket{x="y",z!~"{[("}[5m])) > 3', {Selector("a_bucket", frozenset("xz"))}),
        ('label_replace(a:b:c, "dst", "$1", "src", "(.+)")', {Selector("a:b:c", frozenset())}),
        ("a and on (b) group_left (c) d offset 5m", {Selector("a", frozenset()), Selector("d", frozenset())}),
        ('absent(a{job="x"} == 1) or vector(0)', {Selector("a", frozenset({"job"}))}),
    ],
)
def test_metrics_are_found_in_an_expression(expression: str, found: set[Selector]) -> None:
    """The checks above rest on it."""
    assert selectors(expression) == found


def test_a_metric_that_is_not_there_and_a_label_that_is_wrong_are_told() -> None:
    """The check can fail."""
    known = {**ours(), **{name: each.labels for name, each in EXPORTED.items()}, **PROCESS}
    without_label = known | {"jobs_handed_back_total": frozenset({"server"})}
    known.pop("service_ready")

    assert "alerts.yaml: NoReadyWorkers" in unknown(known)
    assert "alerts.yaml: PoolsExhausted" in unknown(without_label)
