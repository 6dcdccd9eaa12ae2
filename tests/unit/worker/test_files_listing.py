"""A folder's archive as a listing, in bounds."""

from __future__ import annotations

from typing import Any

import pytest

from worker.executors import files_listing
from worker.executors.files_listing import Listing
from worker.tar_stream import EntryType, TarEntry


def entry(name: str, type_: EntryType = "file", size: int = 0, target: str = "") -> TarEntry:
    return TarEntry(name, type_, size, 1_700_000_000_000, target)


def listed(items: list[TarEntry | bytes], path: str = "", max_content_bytes: int = 1000) -> Listing:
    """Fed as the executor does: until it is full."""
    listing = Listing(path, max_content_bytes)
    for item in items:
        listing.take(item)
        if listing.truncated:
            break
    return listing


def names(listing: Listing) -> list[Any]:
    return [each["name"] for each in listing.entries]


def test_entries_are_named_from_the_files_directory_on() -> None:
    """So that each name can be asked for as it is; the folder itself is none of its entries."""
    items: list[TarEntry | bytes] = [entry("b", "folder"), entry("b/c", "folder"), entry("b/c/f", size=3), b"abc"]

    assert listed(items, "a/b").entries == [
        {"name": "a/b/c", "type": "folder", "size": 0, "mtime_ms": 1_700_000_000_000},
        {"name": "a/b/c/f", "type": "file", "size": 3, "mtime_ms": 1_700_000_000_000},
    ]
    assert names(listed([entry("files", "folder"), entry("files/x")])) == ["x"]


def test_a_further_name_of_a_file_is_a_file_with_its_size() -> None:
    """In the archive it is a link without a size."""
    items: list[TarEntry | bytes] = [entry("d/f", size=3), b"abc", entry("d/g", "link", target="d/f")]

    assert [(each["type"], each["size"]) for each in listed(items).entries] == [("file", 3), ("file", 3)]
    assert "target" not in listed(items).entries[1]


def test_a_symlink_tells_what_was_made_of_it() -> None:
    """Whatever that leads to."""
    [shown] = listed([entry("d/l", "symlink", target="../../etc")]).entries

    assert (shown["type"], shown["target"]) == ("symlink", "../../etc")


def test_a_thousand_entries_are_whole_and_one_more_is_too_many() -> None:
    """What is there says so."""
    thousand: list[TarEntry | bytes] = [entry(f"d/{n}") for n in range(1000)]

    assert (len(listed(thousand).entries), listed(thousand).truncated) == (1000, False)
    more = listed([*thousand, entry("d/more"), entry("d/never")])
    assert (len(more.entries), more.truncated) == (1000, True)


def test_contents_are_skipped_up_to_a_bound() -> None:
    """A file with holes is as long as its tool likes; what was seen until then is listed."""
    items: list[TarEntry | bytes] = [
        entry("d/a", size=1000),
        b"x" * 1000,
        entry("d/b", size=10**12),
        b"x",
        entry("d/c"),
    ]

    listing = listed(items)

    assert (names(listing), listing.truncated) == (["a", "b"], True)


def test_names_are_bounded_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand long paths are more than an answer should have. Targets count."""
    monkeypatch.setattr(files_listing, "MAX_TEXT_BYTES", 20)

    assert names(listed([entry("d/" + "n" * 10), entry("d/" + "m" * 10), entry("d/o")])) == ["n" * 10, "m" * 10]
    assert names(listed([entry("d/l", "symlink", target="t" * 19), entry("d/m")])) == ["l"]
    assert listed([entry("d/l", "symlink", target="t" * 20)]).truncated


def test_a_name_that_is_no_text_is_shown_with_replacements() -> None:
    """An answer is JSON."""
    [shown] = listed([entry("d/a\udcff", "symlink", target="\udcfe")]).entries

    assert (shown["name"], shown["target"]) == ("a\ufffd", "\ufffd")
