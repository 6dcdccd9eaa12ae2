"""The programs of `make tools`: other people's, which the tests run against ours."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

import pytest

BUILT: Final = Path(__file__).parents[1] / ".tools" / "bin"


def program(name: str) -> Path:
    """Where `name` is. The test that asks is skipped, with the reason, on a machine that cannot have it."""
    built = BUILT / name
    if built.exists():
        return built
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not here: `make tools` builds it where Go and apt-get are installed")
    return Path(found)
