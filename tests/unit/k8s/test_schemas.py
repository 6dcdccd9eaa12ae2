"""Every object of every combination is one that a cluster takes."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, Final

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator

from tests.unit.k8s.rendering import K8S, ROOT, Case, case_id, cases, render

OLDEST: Final = "1.34"
"""The first in which `preStop.sleep` needs no gate; sidecars need none since 1.33."""
NEWEST: Final = "1.37"
CRDS: Final = ROOT / ".tools" / "schemas"
OWN_KINDS: Final = frozenset(
    {"keda.sh", "gateway.networking.k8s.io", "monitoring.coreos.com", "external-secrets.io", "cert-manager.io"}
)


def group(api_version: str) -> str:
    return api_version.rpartition("/")[0]


@functools.cache
def faults(text: str) -> list[str]:
    """What is wrong with an object, in JSON; most objects are the same in many combinations."""
    each = json.loads(text)
    if group(each["apiVersion"]) in OWN_KINDS:
        return custom_faults(each)
    found = []
    for version in (OLDEST, NEWEST):
        try:
            kubernetes_validate.validate(each, version, strict=True)
        except kubernetes_validate.ValidationError as exc:
            found.append(f"{version}: {'.'.join(map(str, exc.path))}: {exc.message}")
    return found


def custom_faults(each: dict[str, Any]) -> list[str]:
    schema = custom_schemas().get((each["apiVersion"], each["kind"]))
    if schema is None:
        return [] if not custom_schemas() else [f"no definition of {each['kind']} in {each['apiVersion']}"]
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(schema).iter_errors(each)]


@functools.cache
def custom_schemas() -> dict[tuple[str, str], dict[str, Any]]:
    found = {}
    for file in sorted(CRDS.glob("*.yaml")):
        definition = yaml.safe_load(file.read_text())
        spec = definition["spec"]
        for version in spec["versions"]:
            api_version = f"{spec['group']}/{version['name']}"
            found[api_version, spec["names"]["kind"]] = closed(version["schema"]["openAPIV3Schema"])
    return found


def closed(schema: Any) -> Any:
    """A cluster drops fields that a schema does not name; here they are faults."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    result = {name: closed(value) for name, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        result["properties"] = {name: closed(value) for name, value in schema["properties"].items()}
        if "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            result["additionalProperties"] = False
    return result


@pytest.mark.parametrize("case", cases(), ids=case_id)
def test_every_object_keeps_to_its_schema(case: Case) -> None:
    """Against the oldest and the newest Kubernetes, strictly; its own kinds against the definitions of `make tools`."""
    wrong = {
        f"{each['kind']}/{each['metadata']['name']}": found
        for each in render(case)
        if (found := faults(json.dumps(each, sort_keys=True)))
    }

    assert wrong == {}


@pytest.mark.parametrize("case", cases(), ids=case_id)
def test_no_object_is_there_twice_and_all_are_in_the_namespace(case: Case) -> None:
    """Whatever is combined, one object has one name."""
    names = [(each["apiVersion"], each["kind"], each["metadata"]["name"]) for each in render(case)]
    elsewhere = [
        each["metadata"]["name"]
        for each in render(case)
        if each["kind"] not in ("Namespace", "RuntimeClass") and each["metadata"].get("namespace") != "mcp-orchestrator"
    ]

    assert len(set(names)) == len(names)
    assert elsewhere == []


def test_the_definitions_of_other_projects_are_here() -> None:
    """Their kinds are checked only with them."""
    if not custom_schemas():
        pytest.skip(".tools/schemas is empty: `make tools` fills it where Go is installed")

    assert {group(api_version) for api_version, _ in custom_schemas()} == OWN_KINDS


def test_a_field_that_no_schema_has_is_a_fault() -> None:
    """The checks above would say so."""
    wrong = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "dota": {}}

    assert faults(json.dumps(wrong)) != []


def test_a_field_that_no_definition_has_is_a_fault() -> None:
    """Also deep in an object of another project's kind."""
    if not custom_schemas():
        pytest.skip(".tools/schemas is empty: `make tools` fills it where Go is installed")
    wrong = {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {"name": "a"},
        "spec": {"scaleTargetRef": {"name": "a"}, "triggers": [], "fallback": {"failureThreshold": 1, "replica": 1}},
    }

    assert any("'replica' was unexpected" in each for each in faults(json.dumps(wrong)))


def test_yaml_has_no_registry_and_every_foreign_image_a_version() -> None:
    """A registry is set by whoever deploys, in one place."""
    for file in Path(K8S).rglob("*.yaml"):
        for line in file.read_text().splitlines():
            if not line.strip().startswith("image: "):
                continue
            image = line.split("image: ")[1].strip()
            first = image.split("/")[0]
            assert "/" not in image or not any(sign in first for sign in ".:"), f"{file}: {image}"
            assert image.startswith("mcp-orchestrator/") or ":" in image, f"{file}: {image}"
