"""Artifacts: output that is kept as an object, and where a client gets it (docs/protocol.md, "Artifacts")."""

from __future__ import annotations

from typing import Final

SIDE_STREAM: Final = "stderr"
"""The one stream of a job that stands beside its output proper."""


def artifact_name(session: str, job: str, stream: str) -> str:
    """The object's name in the bucket `artifacts`."""
    return f"{session}/{job}/{SIDE_STREAM}" if stream == SIDE_STREAM else f"{session}/{job}"


def artifact_uri(session: str, job: str, stream: str) -> str:
    """Its address at every gateway."""
    side = f"/{SIDE_STREAM}" if stream == SIDE_STREAM else ""
    return f"/v1/sessions/{session}/artifacts/{job}{side}"


def upload_name(session: str, job: str) -> str:
    """The object's name of a file on its way to a container."""
    return f"{session}/{job}/upload"
