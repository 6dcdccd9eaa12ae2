"""The code that services are started from: the working tree, or another commit beside it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
PREVIOUS = "HEAD~1"
PACKAGES = ("common", "gateway", "worker")
WHERE = f"import importlib; [print(importlib.import_module(name).__file__) for name in {PACKAGES}]"


class NoSuchRelease(Exception):
    """The commit that was asked for is not here."""


@dataclass(frozen=True)
class Release:
    """`name` is its part in the rehearsal, `what` says which code it is."""

    name: str
    what: str
    env: dict[str, str] = field(default_factory=dict)
    """What makes a service run this code; its dependencies are those of this interpreter."""


def new_release() -> Release:
    return Release("new", f"the working tree at {_git('describe', '--always', '--dirty') or 'an unknown commit'}")


def old_release(ref: str | None, folder: Path) -> Release:
    """The code of a commit, unpacked into `folder`; without `ref` the commit before this one.

    A checkout without history has none: then the same code stands in for it, and `what` says so.

    Raises:
        NoSuchRelease: if `ref` is given and is no commit here, or has no services.
    """
    commit = _git("rev-parse", "--verify", "--short", f"{ref or PREVIOUS}^{{commit}}")
    if not commit:
        if ref is not None:
            raise NoSuchRelease(f"{ref} is no commit of {ROOT}")
        return Release("old", "the same code: there is no commit before this one here")
    _unpack(commit, folder)
    sources = sorted(str(path) for kind in ("libs", "services") for path in (folder / kind).glob("*/src"))
    release = Release("old", f"{ref or PREVIOUS} at {commit}", {"PYTHONPATH": os.pathsep.join(sources)})
    _require_own_code(release, folder)
    return release


def _git(*arguments: str) -> str:
    """What it says, in one line; empty where there is no repository, no git, or no such thing."""
    try:
        done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _unpack(commit: str, folder: Path) -> None:
    # An archive, not a worktree: it leaves nothing in the repository, however the rehearsal ends.
    archive = subprocess.run(["git", "-C", ROOT, "archive", commit], capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")


def _require_own_code(release: Release, folder: Path) -> None:
    """A rehearsal with twice the same code would prove nothing."""
    asked = subprocess.run(
        [sys.executable, "-c", WHERE], env={**os.environ, **release.env}, capture_output=True, text=True, check=False
    )
    found = asked.stdout.split()
    if asked.returncode or len(found) != len(PACKAGES) or not all(Path(each).is_relative_to(folder) for each in found):
        raise NoSuchRelease(f"{release.what} does not run from {folder}: {found} {asked.stderr[-500:]}")
