"""What a PromQL expression asks for: the names of its metrics, and the labels that it selects them by."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_STRING: Final = re.compile(r'"(?:\\.|[^"\\])*"')
_RANGE: Final = re.compile(r"\[[^\]]*\]")
_LABEL_LIST: Final = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
_OTHER_WORDS: Final = frozenset(
    [
        "and",
        "or",
        "unless",
        "bool",
        "offset",
        "inf",
        "nan",
        "by",
        "without",
        "on",
        "ignoring",
        "group_left",
        "group_right",
    ]
)
_SELECTOR: Final = re.compile(r"(?<![\w:])([a-zA-Z_:][\w:]*)\s*(\{[^}]*\})?(?!\s*\()(?![\w:])")
_LABEL: Final = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")


class Selector(NamedTuple):
    metric: str
    labels: frozenset[str]


def selectors(expression: str) -> set[Selector]:
    """Functions, operators and the labels of groupings are not taken for metrics, nor is what stands in quotes."""
    bare = _LABEL_LIST.sub(" ", _RANGE.sub("", _STRING.sub('""', expression)))
    return {
        Selector(found[1], frozenset(_LABEL.findall(found[2] or "")))
        for found in _SELECTOR.finditer(bare)
        if found[1].lower() not in _OTHER_WORDS
    }
