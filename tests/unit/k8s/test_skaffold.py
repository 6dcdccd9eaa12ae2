"""What skaffold builds is what the manifests run."""

from __future__ import annotations

import json
from typing import Final

import pytest
import yaml
from jsonschema import Draft7Validator

from tests.unit.k8s.rendering import OVERLAYS, ROOT, containers, pods, render

FILE: Final = ROOT / "skaffold.yaml"


def test_skaffolds_own_schema_takes_the_file() -> None:
    """It knows every field of the version that the file names, and allows no other."""
    documents = list(yaml.safe_load_all(FILE.read_text()))
    version = documents[0]["apiVersion"].removeprefix("skaffold/")
    schema = ROOT / ".tools" / "schemas" / f"{version}.json"
    if not schema.exists():
        pytest.skip("skaffold's schema is not here: `make tools` gets it where Go is installed")
    validator = Draft7Validator(json.loads(schema.read_text()))

    assert [fault.message for document in documents for fault in validator.iter_errors(document)] == []
    assert list(validator.iter_errors({**documents[0], "bild": {}}))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_skaffold_builds_every_image_of_ours(overlay: str) -> None:
    """Names are equal letter by letter, or skaffold would leave the manifests as they are."""
    built: set[str] = set()
    for document in yaml.safe_load_all(FILE.read_text()):
        built |= {artifact["image"] for artifact in document.get("build", {}).get("artifacts", [])}
    images = {each["image"].split(":")[0] for _, pod in pods(render((overlay,))) for each in containers(pod)}
    ours = {image for image in images if image.startswith("mcp-orchestrator/")}

    assert ours <= built
    assert built - ours <= {"mcp-orchestrator/verify"}
