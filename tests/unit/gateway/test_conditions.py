"""Ranges and conditions, by the examples and rules of RFC 9110."""

from __future__ import annotations

import pytest

from gateway.conditions import Span, Unsatisfiable, matches, range_holds, span

SIZE = 1_000
ETAG = '"sha256-ab"'


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ("bytes=0-499", Span(0, 500)),
        ("bytes=500-", Span(500, 1_000)),
        ("bytes=-300", Span(700, 1_000)),
        ("bytes=-5000", Span(0, 1_000)),
        ("bytes=999-5000", Span(999, 1_000)),
        ("bytes=0-0", Span(0, 1)),
        ("Bytes=0-0", Span(0, 1)),
    ],
)
def test_a_range_is_the_bytes_that_exist_of_it(asked: str, wanted: Span) -> None:
    """Its last byte counts."""
    assert span(asked, SIZE) == wanted


@pytest.mark.parametrize("asked", ["bytes=1000-", "bytes=1000-1000", "bytes=5000-6000", "bytes=-0"])
def test_a_range_of_which_nothing_exists_is_unsatisfiable(asked: str) -> None:
    """The gateway says 416."""
    with pytest.raises(Unsatisfiable):
        span(asked, SIZE)


def test_an_empty_object_has_no_range() -> None:
    """Not even its end."""
    for asked in ("bytes=0-", "bytes=-1"):
        with pytest.raises(Unsatisfiable):
            span(asked, 0)


@pytest.mark.parametrize(
    "asked",
    [
        None,
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=5-2",
        "bytes=a-b",
        "bytes=0-1,3-4",
        "items=0-1",
        "bytes=" + "9" * 999,
    ],
)
def test_what_is_no_single_range_is_not_looked_at(asked: str | None) -> None:
    """The whole is sent."""
    assert span(asked, SIZE) is None


def test_the_header_of_a_part_names_its_last_byte() -> None:
    """And the size of the whole."""
    assert Span(0, 500).content_range(SIZE) == "bytes 0-499/1000"


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        (ETAG, True),
        (f"W/{ETAG}", True),
        (f'"x", {ETAG}', True),
        ("*", True),
        ('"x"', False),
        ("sha256-ab", False),
        (None, False),
    ],
)
def test_a_tag_is_looked_for_among_those_that_the_client_has(asked: str | None, wanted: bool) -> None:
    """Weak ones serve too."""
    assert matches(asked, ETAG) is wanted


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [(None, True), (ETAG, True), (f"W/{ETAG}", False), ('"x"', False), ("Tue, 15 Nov 1994 12:45:26 GMT", False)],
)
def test_a_part_is_only_sent_of_what_the_client_has_the_beginning_of(asked: str | None, wanted: bool) -> None:
    """A weak tag does not tell."""
    assert range_holds(asked, ETAG) is wanted
