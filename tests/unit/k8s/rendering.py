"""Overlays and components of k8s/ as they reach a cluster, each rendered once a process."""

from __future__ import annotations

import base64
import functools
import itertools
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from tests.programs import program

ROOT: Final = Path(__file__).parents[3]
K8S: Final = ROOT / "k8s"
OVERLAYS: Final = ("dev", "prod")
COMPONENTS: Final = tuple(sorted(each.parent.name for each in K8S.glob("components/*/kustomization.yaml")))

Object = dict[str, Any]
Case = tuple[str, ...]
"""An overlay, then components in their order."""

_ENTRIES: Final[tuple[Case, ...]] = (("gateway-api", "tls"), ("ingress-nginx", "tls", "affinity"))
_ENGINES: Final[tuple[Case, ...]] = ((), ("gvisor",), ("node-socket",), ("remote-engine",))
_SCALING: Final[tuple[Case, ...]] = ((), ("keda",))
_NATS: Final[tuple[Case, ...]] = (("monitoring",), ("external-nats", "monitoring"))


def cases() -> list[Case]:
    """Each overlay alone, with each component, and production with what makes sense together."""
    bare: list[Case] = [(overlay,) for overlay in OVERLAYS]
    single: list[Case] = [(overlay, component) for overlay in OVERLAYS for component in COMPONENTS]
    together: list[Case] = [
        ("prod", "external-secrets", "tracing", *entry, *engine, *scaling, *nats)
        for entry, engine, scaling, nats in itertools.product(_ENTRIES, _ENGINES, _SCALING, _NATS)
    ]
    return bare + single + together


def case_id(case: Case) -> str:
    return "+".join(case)


@functools.cache
def render(case: Case) -> list[Object]:
    """All objects. Not to be changed by who asks."""
    overlay, *components = case
    with tempfile.TemporaryDirectory() as folder:

        def path(to: Path) -> str:
            return os.path.relpath(to, Path(folder).resolve())

        kustomization = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [path(K8S / "overlays" / overlay)],
            "components": [path(K8S / "components" / each) for each in components],
        }
        (Path(folder) / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        done = subprocess.run([program("kustomize"), "build", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    return [each for each in objects if each["kind"] == kind]


def one(objects: list[Object], kind: str, name: str) -> Object:
    (found,) = [each for each in of_kind(objects, kind) if each["metadata"]["name"] == name]
    return found


def pods(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """Name of the owner, and the template, of everything that makes pods."""
    for each in objects:
        if each["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
            yield each["metadata"]["name"], each["spec"]["template"]
        elif each["kind"] == "CronJob":
            yield each["metadata"]["name"], each["spec"]["jobTemplate"]["spec"]["template"]


def containers(pod: Object) -> list[Object]:
    """Init containers and sidecars included."""
    spec = pod["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


def container(objects: list[Object], owner: str, name: str) -> Object:
    pod = dict(pods(objects))[owner]
    (found,) = [each for each in containers(pod) if each["name"] == name]
    return found


def environment(objects: list[Object], owner: str, name: str) -> dict[str, str]:
    """What a container has; a Secret that is not among the objects gives empty values."""
    found: dict[str, str] = {}
    its = container(objects, owner, name)
    for source in its.get("envFrom", []):
        found |= one(objects, "ConfigMap", source["configMapRef"]["name"])["data"]
    for variable in its.get("env", []):
        reference = variable.get("valueFrom", {}).get("secretKeyRef")
        found[variable["name"]] = _secret(objects, reference) if reference else variable.get("value", "")
    return found


def _secret(objects: list[Object], reference: dict[str, str]) -> str:
    for secret in of_kind(objects, "Secret"):
        if secret["metadata"]["name"] == reference["name"]:
            return base64.b64decode(secret["data"][reference["key"]]).decode()
    return ""
