"""compose.yaml, skaffold.yaml and the Dockerfiles say the same as the services do."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.settings import BusSettings
from gateway.settings import GatewaySettings
from standalone.nats_server import BINARY
from worker.settings import WorkerSettings

ROOT = Path(__file__).parents[2]
SERVICES = ("gateway", "worker")
SETTINGS: dict[str, type[BusSettings]] = {"gateway": GatewaySettings, "worker": WorkerSettings}


def parsed(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return found


COMPOSE = parsed("compose.yaml")
SKAFFOLD = parsed("skaffold.yaml")


@pytest.mark.parametrize("service", SERVICES)
def test_compose_sets_only_what_the_service_reads(service: str) -> None:
    given = set(COMPOSE["services"][service]["environment"])

    assert given <= {name.upper() for name in SETTINGS[service].model_fields}


def test_compose_takes_every_variable_from_the_example_of_env_or_has_a_default_for_it() -> None:
    text = (ROOT / "compose.yaml").read_text()
    needed = set(re.findall(r"\$\{(\w+):\?", text))
    offered = set(re.findall(r"^(\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))

    assert needed <= offered
    assert not re.findall(r"\$\{\w+\}", text), "a variable without a default, that nothing asks for"


def test_compose_limits_every_service_that_stays_and_pins_every_image() -> None:
    for name, service in COMPOSE["services"].items():
        assert re.search(r":v?(\d|\$\{VERSION)", service["image"]), name
        if service["restart"] != "no":
            limits = service["deploy"]["resources"]["limits"]
            assert set(limits) == {"cpus", "memory"}, name


def test_compose_gives_services_longer_to_end_than_their_drain_takes() -> None:
    for service in SERVICES:
        grace = int(COMPOSE["services"][service]["stop_grace_period"].removesuffix("s"))
        assert grace > SETTINGS[service].model_fields["drain_timeout_s"].default, service


def test_compose_gives_nats_all_that_its_configuration_wants(tmp_path: Path) -> None:
    """nats-server itself reads it, with the variables of the service and no others."""
    service = COMPOSE["services"]["nats"]
    for volume in service["volumes"]:
        source, _, target = volume.partition(":")
        if source.startswith("./"):
            shutil.copy(ROOT / source, tmp_path / Path(target.removesuffix(":ro")).name)
    env = dict.fromkeys(service["environment"], "secret")
    done = subprocess.run(
        [BINARY, "-t", "-c", tmp_path / "nats.conf"], env=env, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("service", SERVICES)
def test_skaffold_syncs_to_where_the_image_for_development_has_its_packages(service: str) -> None:
    """And builds a stage that the Dockerfile has."""
    number = SERVICES.index(service)
    artifact = SKAFFOLD["build"]["artifacts"][number]
    dockerfile = (ROOT / artifact["docker"]["dockerfile"]).read_text()
    patches = {each["path"]: each["value"] for each in SKAFFOLD["profiles"][0]["patches"]}
    rules = patches[f"/build/artifacts/{number}/sync"]["manual"]

    assert artifact["image"] == f"mcp-orchestrator/{service}"
    for stage in (artifact["docker"]["target"], patches[f"/build/artifacts/{number}/docker/target"]):
        assert f" AS {stage}\n" in dockerfile
    for rule in rules:
        assert rule["src"].startswith(rule["strip"])
        assert list(ROOT.glob(rule["src"])), rule["src"]
        assert f"/opt/venv/packages/{rule['src'].split('/src/')[1].split('/')[0]}" in dockerfile


def test_what_skaffold_verifies_with_is_one_of_its_artifacts() -> None:
    images = [each["image"] for each in SKAFFOLD["build"]["artifacts"]]

    assert [each["container"]["image"] for each in SKAFFOLD["verify"]] == ["mcp-orchestrator/verify"]
    assert "mcp-orchestrator/verify" in images


def test_all_images_have_one_base_that_is_pinned() -> None:
    files = [ROOT / each["docker"]["dockerfile"] for each in SKAFFOLD["build"]["artifacts"]]
    bases = {re.findall(r"^ARG BASE_IMAGE=(.*)$", file.read_text(), re.MULTILINE)[0] for file in files}

    assert len(bases) == 1
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", bases.pop())
