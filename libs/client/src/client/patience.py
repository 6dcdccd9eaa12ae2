"""How long to go on trying, and how long to wait between two tries."""

from __future__ import annotations

import asyncio
import random
from typing import Final

FIRST_DELAY_S: Final = 0.1
LAST_DELAY_S: Final = 3.0
STEADY_S: Final = 5.0
"""A success that lasted this long ends a series of failures; a shorter one is one more of them."""


class Patience:
    """Delays that grow, within a budget for each series of failures."""

    def __init__(self, budget_s: float) -> None:
        self._budget_s = budget_s
        self._failures = 0
        self._since = 0.0
        self._good_since: float | None = None

    def succeeded(self) -> None:
        self._good_since = asyncio.get_running_loop().time()

    def failed(self) -> float | None:
        """Seconds to wait before the next try; None when the budget of this series is used up."""
        now = asyncio.get_running_loop().time()
        if self._good_since is not None and now - self._good_since >= STEADY_S:
            self._failures = 0
        if self._failures == 0:
            self._since = now
        self._failures += 1
        self._good_since = None
        left = self._since + self._budget_s - now
        if left <= 0:
            return None
        # Full jitter: the clients of a gateway that died do not all come back in the same moment.
        return min(left, random.uniform(0, min(LAST_DELAY_S, FIRST_DELAY_S * 2 ** (self._failures - 1))))
