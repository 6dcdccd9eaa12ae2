"""Paths in a files directory: what may be asked for, and what may not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.file_path import PathFault, parts_of


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("a", ["a"]),
        ("a/b.txt", ["a", "b.txt"]),
        ("...", ["..."]),
        (".hidden/..x", [".hidden", "..x"]),
        ("with space/ä\n%2F\\", ["with space", "ä\n%2F\\"]),
        ("n" * 255, ["n" * 255]),
        ("/".join(["n" * 127] * 32), ["n" * 127] * 32),
    ],
)
def test_a_path_is_the_names_along_it(path: str, parts: list[str]) -> None:
    """Whatever Linux takes for a name is one."""
    assert parts_of(path) == parts


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("", "empty"),
        ("/", "relative"),
        ("/etc/passwd", "relative"),
        ("a/", "stands a name"),
        ("a//b", "stands a name"),
        (".", r"'\.' or '\.\.'"),
        ("a/../b", r"'\.' or '\.\.'"),
        ("a/..", r"'\.' or '\.\.'"),
        ("./a", r"'\.' or '\.\.'"),
        ("a\0b", "NUL"),
        ("a\ud800", "UTF-8"),
        ("n" * 256, "256 bytes"),
        ("ä" * 128, "256 bytes"),
        ("/".join(["n" * 127] * 32) + "/m", "4097 bytes; at most 4096"),
    ],
)
def test_a_path_that_breaks_a_rule_is_refused_with_the_rule(path: str, rule: str) -> None:
    """Nothing is mended: what a caller meant would be a guess."""
    with pytest.raises(PathFault, match=rule):
        parts_of(path)


@given(st.text(st.sampled_from("a./\0ä\ud800"), max_size=12))
def test_what_is_taken_never_leads_out(path: str) -> None:
    """And is the same path again when its names are joined."""
    try:
        parts = parts_of(path)
    except PathFault:
        return
    assert "/".join(parts) == path
    assert not {"", ".", ".."} & set(parts)
