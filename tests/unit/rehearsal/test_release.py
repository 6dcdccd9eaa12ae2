"""Where the old code of a rehearsal comes from."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.rehearsal import release
from tests.rehearsal.release import NoSuchRelease, old_release


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.com")
    return subprocess.run(
        ["git", "-C", folder, *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One commit with the packages that services are made of, each in the place where it is."""
    folder = tmp_path / "repository"
    for place in ("libs/common/src/common", "services/gateway/src/gateway", "services/worker/src/worker"):
        (folder / place).mkdir(parents=True)
        (folder / place / "__init__.py").touch()
    git(folder.parent, "init", "--quiet", folder.name)
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "first")
    monkeypatch.setattr(release, "ROOT", folder)
    return folder


def test_without_a_commit_before_this_one_the_same_code_stands_in_and_says_so(repository: Path, tmp_path: Path) -> None:
    found = old_release(None, tmp_path / "old")

    assert found.env == {}
    assert "the same code" in found.what


def test_where_there_is_no_repository_the_same_code_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "ROOT", tmp_path)

    assert "the same code" in old_release(None, tmp_path / "old").what


def test_the_commit_before_this_one_is_unpacked_and_is_what_runs(repository: Path, tmp_path: Path) -> None:
    """Its own sources come first, before those that this interpreter has installed."""
    git(repository, "commit", "--quiet", "--allow-empty", "--message", "second")
    folder = tmp_path / "old"

    found = old_release(None, folder)

    assert found.what == f"HEAD~1 at {git(repository, 'rev-parse', '--short', 'HEAD~1')}"
    assert str(folder / "services/worker/src") in found.env["PYTHONPATH"].split(":")
    assert git(repository, "worktree", "list").count("\n") == 0


def test_a_commit_that_is_asked_for_and_is_not_here_is_refused(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(NoSuchRelease, match="v9 is no commit"):
        old_release("v9", tmp_path / "old")


def test_a_commit_from_whose_code_nothing_would_run_is_refused(repository: Path, tmp_path: Path) -> None:
    git(repository, "rm", "-r", "--quiet", "services/worker")
    git(repository, "commit", "--quiet", "--message", "no worker")

    with pytest.raises(NoSuchRelease, match="does not run from"):
        old_release("HEAD", tmp_path / "old")
