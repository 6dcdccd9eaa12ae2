"""How long the SDKs may wait because a provider tells them to. What it tells is `Retry-After`."""

from __future__ import annotations

import time
from email.utils import mktime_tz, parsedate_tz
from typing import Final

import httpx2

MAX_WAIT_S: Final = 30.0


async def no_long_wait(response: httpx2.Response) -> None:
    """A hook of the HTTP client: where the provider names a longer wait, the SDK does not try again.

    Left to themselves OpenAI's waits up to two minutes, and Anthropic's as many days as it is told, in each try.
    """
    headers = response.headers
    waits = (_seconds(headers.get("retry-after", "")), _seconds(headers.get("retry-after-ms", "")) / 1000)
    if not all(wait <= MAX_WAIT_S for wait in waits):  # nor if it is NaN
        headers["x-should-retry"] = "false"


def _seconds(named: str) -> float:
    """Of a number, or until a date; 0 of anything else."""
    try:
        return float(named)
    except ValueError:
        date = parsedate_tz(named)
        return 0.0 if date is None else mktime_tz(date) - time.time()
