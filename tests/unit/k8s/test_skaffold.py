"""What skaffold builds is what the manifests run."""

from __future__ import annotations

import pytest
import yaml

from tests.unit.k8s.rendering import OVERLAYS, ROOT, containers, pods, render


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_skaffold_builds_every_image_of_ours(overlay: str) -> None:
    """Names are equal letter by letter, or skaffold would leave the manifests as they are."""
    file = ROOT / "skaffold.yaml"
    if not file.exists():
        pytest.skip("there is no skaffold.yaml yet")
    built: set[str] = set()
    for document in yaml.safe_load_all(file.read_text()):
        built |= {artifact["image"] for artifact in document.get("build", {}).get("artifacts", [])}
    images = {each["image"].split(":")[0] for _, pod in pods(render((overlay,))) for each in containers(pod)}
    ours = {image for image in images if image.startswith("mcp-orchestrator/")}

    assert ours <= built
    assert built - ours <= {"mcp-orchestrator/verify"}
