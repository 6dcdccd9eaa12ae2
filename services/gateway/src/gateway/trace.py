"""W3C trace context: the one field of it that travels with a job."""

from __future__ import annotations

import re
from typing import Any, Final

_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def traceparent(value: Any) -> str | None:
    """`value` if it is a `traceparent`, else None: a broken one starts a new trace, as the W3C asks."""
    return value if isinstance(value, str) and _TRACEPARENT.fullmatch(value) else None
