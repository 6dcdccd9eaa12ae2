"""What models write: how much of it is taken, and the arguments of tool calls, which are JSON most of the time."""

from __future__ import annotations

import json
import math
from typing import Any

import msgpack

from common.schema import nearest
from worker.models.contract import ToolCall

MAX_CHARACTERS = 1024**2
"""Of one answer, text and arguments: there are servers that do not heed the limit of tokens and write without end."""
NOT_JSON = "not_json"
"""Under this name stands, in an object, what a model wrote that was none: providers take only objects back."""


def made_call(id: str, name: str, written: str) -> ToolCall:
    """The call that a model has finished writing. Nothing written is a call without arguments."""
    arguments = _read(written) if written.strip() else {}
    return ToolCall(id, nearest(name), arguments, "" if arguments is not None else nearest(written))


def sent_back(call: ToolCall) -> dict[str, Any]:
    """The arguments as they stand in the history that a provider is given."""
    return {NOT_JSON: call.written} if call.arguments is None else call.arguments


def _read(written: str) -> dict[str, Any] | None:
    """The object; None where it is no JSON object, or one that a job cannot carry."""
    try:
        value = json.loads(written, parse_constant=_finite, parse_float=_finite)
        # Whole numbers above 64 bits, half a surrogate pair, 500 levels: JSON to Python, and to no job of ours.
        msgpack.packb(value)
    except (ValueError, OverflowError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a number of JSON")
    return number
