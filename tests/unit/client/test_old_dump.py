"""The old system's dump as it is read: every form of a value, and every fault of a line."""

from __future__ import annotations

import base64
import gzip
import io
import json
from typing import Any

import pytest

import client.old_dump
from client.old_dump import MAX_TTL_S, BadLine, Item, OldConversation, OtherKey, read

MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": "good morning ☀", "timestamp": 1_700_000_000_000, "client": {"app": [1, None]}},
    {"role": "assistant", "content": "", "timestamp": "2023-11-14T22:13:20Z"},
]


def packed(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def line(value: Any = MESSAGES, key: str = "conversation:s-1", **more: Any) -> bytes:
    return json.dumps({"key": key, "value": value, **more}).encode() + b"\n"


def items(*lines: bytes) -> list[Item]:
    return list(read(io.BytesIO(b"".join(lines))))


def conversation(*lines: bytes) -> OldConversation:
    [found] = items(*lines)
    assert isinstance(found, OldConversation), found
    return found


def reason(*lines: bytes) -> str:
    [found] = items(*lines)
    assert isinstance(found, BadLine), found
    return found.reason


@pytest.mark.parametrize(
    "value",
    [MESSAGES, json.dumps(MESSAGES), " \n" + json.dumps(MESSAGES), packed(json.dumps(MESSAGES))],
    ids=["array", "text", "text after a space", "base64 of gzip"],
)
def test_a_value_is_the_same_messages_in_every_form(value: Any) -> None:
    """With every field that they have."""
    found = conversation(line(value))

    assert (found.line, found.session, found.messages, found.ttl_s) == (1, "s-1", MESSAGES, None)


def test_base64_may_be_broken_into_lines() -> None:
    """As the command of that name writes it."""
    text = packed(json.dumps(MESSAGES))

    assert conversation(line("\n".join([text[:20], text[20:]]))).messages == MESSAGES


def test_a_dump_that_is_gzipped_is_told_by_its_first_bytes() -> None:
    """Also one of several parts, as appending makes it."""
    whole = io.BytesIO(gzip.compress(line()) + gzip.compress(line(key="conversation:s-2")))
    found = [item.session for item in read(whole) if isinstance(item, OldConversation)]

    assert found == ["s-1", "s-2"]


def test_other_keys_and_empty_lines_are_no_faults() -> None:
    """Other keys are counted by whoever reads; numbers of lines count empty ones."""
    found = items(line(key="session:1", value="x"), b"\n", line(key="conversations"), line()[:-1])

    assert found[:2] == [OtherKey(1), OtherKey(3)]
    assert [item.line for item in found] == [1, 3, 4]


def test_a_dump_of_nothing_says_nothing() -> None:
    """Nor does one of a byte too few to tell what it is."""
    assert items() == []
    assert items(b"\n") == []


@pytest.mark.parametrize(
    ("session", "fault"),
    [
        ("", "''"),
        ("a b", "'a b'"),
        ("a.b", "'a.b'"),
        ("a\n", r"'a\n'"),
        ("ü", "'ü'"),
        ("_dictionary", "'_dictionary'"),
        ("x" * 65, "xxx"),
        ("x" * 1000, "x…"),
    ],
)
def test_a_session_id_that_cannot_be_one_here_is_a_fault(session: str, fault: str) -> None:
    """It is named, and what it may be; shortened where it is endless."""
    said = reason(line(key=f"conversation:{session}"))

    assert fault in said
    assert "1-64 letters" in said
    assert len(said) < 300


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        (b"{\n", "not JSON"),
        (b"\xff\n", "not JSON"),
        (b"[" * 100_000 + b"\n", "not JSON"),
        (b'{"key": "conversation:s", "value": [{"role": "user", "content": NaN}]}\n', "NaN is not JSON"),
        (b'{"key": "conversation:s", "value": [{"role": "user", "content": 1e999}]}\n', "message 1 cannot be said"),
        (b'{"key": "conversation:s", "value": [{"role": "user", "content": "\\ud800"}]}\n', "message 1 cannot be said"),
        (b"[]\n", "no object with a key"),
        (b'{"value": []}\n', "no object with a key"),
        (b'{"key": 5}\n', "no object with a key"),
        (b'{"key": "conversation:s"}\n', "no array of messages"),
        (line({"role": "user"}), "no array of messages"),
        (line("[{]"), "its value is not JSON"),
        (line("nothing of that"), "no base64"),
        (line(base64.b64encode(b"plain").decode()), "not of gzip'd JSON"),
        (line(packed("{}")), "no array of messages"),
        (line(packed("[")), "its value is not JSON"),
        (line(packed("[]")[:-8]), "ends too early"),
        (line(base64.b64encode(gzip.compress(b"[]", mtime=0) * 2).decode()), "bytes follow its end"),
        (line(base64.b64encode(b"\x1f\x8b" + b"x" * 20).decode()), "corrupt gzip"),
        (line([{"role": "user"}, "text"]), "message 2 is no object with a role"),
        (line([{"content": "x"}]), "message 1 is no object with a role"),
        (line(ttl="soon"), "ttl"),
        (line(ttl=-2), "ttl"),
        (line(ttl=True), "ttl"),
    ],
)
def test_a_broken_line_is_told_with_its_number_and_the_next_one_is_read(broken: bytes, fault: str) -> None:
    """One sentence each."""
    bad, good = items(broken, line())

    assert isinstance(bad, BadLine)
    assert bad.line == 1
    assert fault in bad.reason
    assert isinstance(good, OldConversation)
    assert good.line == 2


@pytest.mark.parametrize(("ttl", "kept_s"), [(-1, None), (None, None), (0, 1), (90, 90), (1.5, 1.5), (1e12, MAX_TTL_S)])
def test_the_time_that_a_key_has_left_is_in_what_the_gateway_takes(ttl: Any, kept_s: float | None) -> None:
    """-1 is Redis's word for a key that does not expire."""
    assert conversation(line(ttl=ttl)).ttl_s == kept_s


def test_what_unpacks_to_too_much_is_refused_without_unpacking_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gigabyte of zeros takes a megabyte."""
    monkeypatch.setattr(client.old_dump, "MAX_UNPACKED_BYTES", 10_000)
    at_the_limit = json.dumps([{"role": "user", "content": "x"}]).ljust(10_000)

    assert len(conversation(line(packed(at_the_limit))).messages) == 1
    assert "unpacks to more than 10,000 bytes" in reason(line(packed(at_the_limit + " ")))


class Endless(io.RawIOBase):
    """Zeros for as long as anybody reads, up to a size, then a good line; it knows the most that was asked at once."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._end = b"\n" + line()
        self.asked = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.asked = max(self.asked, len(buffer))
        if self._left:
            count = min(self._left, len(buffer))
            self._left -= count
            buffer[:count] = bytes(count)
            return count
        count = min(len(self._end), len(buffer))
        buffer[:count], self._end = self._end[:count], self._end[count:]
        return count


def test_a_line_that_is_too_long_is_told_and_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is not read ahead, and what follows is read; a line of exactly the limit is fine."""
    monkeypatch.setattr(client.old_dump, "MAX_LINE_BYTES", 100_000)
    source = Endless(3_000_000)
    bad, good = read(io.BufferedReader(source))

    assert bad == BadLine(1, "it has more than 100,000 bytes")
    assert isinstance(good, OldConversation)
    assert good.line == 2
    assert source.asked <= 2 * 64 * 1024
    assert conversation(line().rstrip().ljust(100_000)).session == "s-1"
    assert conversation(line().rstrip().ljust(100_000) + b"\n").session == "s-1"
    assert "100,000" in reason(line().rstrip().ljust(100_001))


@pytest.mark.parametrize("cut", [10, 60])
def test_a_file_that_ends_in_its_middle_says_so_behind_what_could_be_read(cut: int) -> None:
    """The last item is the fault."""
    whole = gzip.compress(line(key="session:1") * 500 + line())
    *_, last = read(io.BytesIO(whole[:cut]))

    assert isinstance(last, BadLine)
    assert "cannot be read from here on" in last.reason


def test_sizes_are_those_of_the_messages_as_they_are_sent() -> None:
    """In bytes, not characters."""
    found = conversation(line())

    assert found.sizes == [
        len(json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()) for message in MESSAGES
    ]
