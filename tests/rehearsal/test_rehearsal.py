"""The rehearsal in its short form: fewer clients, and little time beside the exchanges."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rehearsal.release import new_release, old_release
from tests.rehearsal.run import Length, Rehearsal

pytestmark = [pytest.mark.docker, pytest.mark.timeout(150)]

SHORT = Length(sessions=2, before_s=1, between_s=0, after_s=0)


async def test_a_rolling_update_and_its_way_back_lose_nothing_and_fail_no_call(
    docker_host: str, tmp_path: Path
) -> None:
    """The promise of docs/architecture.md, "Upgrades", from the commit before this one; the full length is
    `make rehearse-upgrade`."""
    old = old_release(None, tmp_path / "old")
    verdict = await Rehearsal(old, new_release(), SHORT, folder=tmp_path, docker_host=docker_host).execute()

    assert verdict.violations == []
    assert (verdict.lost, verdict.failed_calls, verdict.doubled) == (0, 0, 0)
    assert verdict.rolled == 8
    assert verdict.states_lost > 0
    assert verdict.during_ms.keys() == {"quick", "long", "progress", "stream", "kept"}
