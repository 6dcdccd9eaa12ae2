"""The wall clock of everybody in a test of the contract: the real one, and ahead of it by what the test lets pass."""

from __future__ import annotations

import sys
from typing import Final

import pytest

from common import schema

_real_now_ms = schema.now_ms

OURS: Final = ("common.", "gateway.", "worker.")


class Clock:
    """Only what is compared between processes hangs on it: creation, deadlines, the age of an attempt. The store's own
    times and the event loops keep the real one."""

    def __init__(self) -> None:
        self._ahead_ms = 0

    def now_ms(self) -> int:
        return _real_now_ms() + self._ahead_ms

    def let_pass(self, seconds: float) -> None:
        self._ahead_ms += int(seconds * 1000)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """For every module of ours that reads the wall clock."""
        for name, module in list(sys.modules.items()):
            if name.startswith(OURS) and vars(module).get("now_ms") is _real_now_ms:
                patch.setattr(module, "now_ms", self.now_ms)
