"""The fault run in its short form: every kind of fault strikes once, and everything is counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.run import Run
from tests.chaos.schedule import KINDS, schedule

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]

SECONDS = 22.0
SEED = 1


async def test_no_job_is_lost_doubled_or_hidden_whatever_fails(docker_host: str, tmp_path: Path) -> None:
    """The contract of docs/architecture.md under a SIGKILL, a freeze or a cut of every part; the full length is
    `make chaos`."""
    faults = schedule(SEED, SECONDS)
    run = Run(SECONDS, SEED, faults, durability="process", folder=tmp_path, docker_host=docker_host)
    verdict = await run.execute()

    assert verdict.violations == []
    assert verdict.jobs > 0
    assert verdict.kills >= 5
    assert {fault.kind for fault in faults} == set(KINDS)
