"""Text of models and tools, made harmless for a terminal."""

from __future__ import annotations

import re
from typing import Final

_HARMFUL: Final = re.compile(
    "\r(?=\n)"  # of a line's end: nothing to be seen
    "|[\x00-\x08\x0b-\x1f\x7f-\x9f]"  # a terminal obeys these, all but tab and newline
    "|[\u200e\u200f\u202a-\u202e\u2066-\u2069]"  # these turn the direction of what is read
    "|[\ud800-\udfff]"  # half a character: it cannot be written at all
)


def printable(text: str) -> str:
    """The text with everything that a terminal would obey, or could not show, written out as an escape."""
    return _HARMFUL.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    if found[0] == "\r" and found.string.startswith("\n", found.end()):
        return ""
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
