"""Conditional and range requests for one representation, as RFC 9110 has them (sections 8.8.3, 13 and 14). No I/O."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_RANGE: Final = re.compile(r"bytes=\s*(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))\s*", re.ASCII | re.IGNORECASE)
_TAG: Final = re.compile(r'(?:W/)?("[^"]*")')


class Span(NamedTuple):
    """Bytes from offset `start` up to `end`."""

    start: int
    end: int

    def content_range(self, size: int) -> str:
        """The header `Content-Range`."""
        return f"bytes {self.start}-{self.end - 1}/{size}"


class Unsatisfiable(Exception):
    """None of the bytes that were asked for exist."""


def span(asked: str | None, size: int) -> Span | None:
    """The one range that the header `Range` asks for; None where the whole is to be sent.

    That is so without the header, for several ranges (nobody needs them here) and for what is no range of bytes.

    Raises:
        Unsatisfiable: if the range begins behind the end.
    """
    found = _RANGE.fullmatch(asked or "")
    if not found:
        return None
    first, last, suffix = found.groups()
    if suffix is not None:
        start, end = max(0, size - int(suffix)), size
    else:
        start, end = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return None
    if start >= size:
        raise Unsatisfiable
    return Span(start, end)


def matches(if_none_match: str | None, etag: str) -> bool:
    """Does the client have this representation already? Tags are compared weakly."""
    asked = (if_none_match or "").strip()
    return asked == "*" or etag in _TAG.findall(asked)


def range_holds(if_range: str | None, etag: str) -> bool:
    """May a part be sent? Not to a client that has the beginning of something else; nor to one that goes by dates."""
    return if_range is None or if_range.strip() == etag
