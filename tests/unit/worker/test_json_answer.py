"""One JSON-RPC message of any length, read in pieces, against `json` reading it whole."""

from __future__ import annotations

import itertools
import json
import random
import tracemalloc
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from worker.json_answer import ERROR_HEAD_BYTES, MAX_DEPTH, AnswerScanner

TEXT = st.text(max_size=6) | st.sampled_from(
    ['"', "\\", '\\"', '"\\\\', "{", "]", "\u20ac\U0001f5fc", 'x"id":1,"result":{}', "\\" * 5, "\t\n"]
)
NAME = TEXT | st.sampled_from(["id", "result", "error", "method", "jsonrpc", "isError", "content"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAME, inner, max_size=4),
    max_leaves=20,
)
RESULTS = VALUES | st.dictionaries(NAME, VALUES, max_size=4).flatmap(
    lambda result: VALUES.map(lambda is_error: {**result, "isError": is_error})
)
STYLES: list[dict[str, Any]] = [
    {"separators": (",", ":")},
    {"separators": (" ,\t", "\r: "), "ensure_ascii": False},
    {"indent": 1, "ensure_ascii": False},
]
LARGE_PIECE = 32 * 1024


def scanned(pieces: Iterable[bytes]) -> tuple[AnswerScanner, bytes]:
    scanner = AnswerScanner()
    result = b"".join([scanner.feed(piece) for piece in pieces])
    scanner.close()
    return scanner, result


def cut(data: bytes, places: list[int]) -> Iterator[bytes]:
    for start, end in itertools.pairwise([0, *sorted(place % (len(data) + 1) for place in places), len(data)]):
        yield data[start:end]


def escaped(name: str) -> str:
    return '"' + "".join(f"\\u{ord(character):04x}" for character in name) + '"'


@st.composite
def messages(draw: st.DrawFn) -> tuple[bytes, bytes, dict[str, Any]]:
    """A message with its members in any order, the bytes of its result, and what `json` makes of it."""
    members = {"jsonrpc": "2.0", "id": draw(st.integers() | VALUES), "result": draw(RESULTS)}
    members |= draw(st.dictionaries(NAME.filter(lambda name: name not in members), VALUES, max_size=2))
    style = draw(st.sampled_from(STYLES))
    space = draw(st.sampled_from(["", " ", "\t\r "]))
    parts = []
    for name in draw(st.permutations(list(members))):
        spelled = escaped(name) if draw(st.booleans()) and name.isascii() else json.dumps(name)
        parts.append(f"{space}{spelled}{space}:{space}{json.dumps(members[name], **style)}{space}")
    line = f"{space}{{{','.join(parts)}}}{space}".encode()
    return line, json.dumps(members["result"], **style).encode(), members


CUTS = st.lists(st.integers(0, 10_000), max_size=8)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(messages(), CUTS)
def test_a_message_is_read_as_json_reads_it_wherever_it_is_cut(
    message: tuple[bytes, bytes, dict[str, Any]], places: list[int]
) -> None:
    """The result's bytes exactly, the id whatever its place, and what the result says of itself."""
    line, result, members = message
    scanner, span = scanned(cut(line, places))
    found = members["result"]

    assert scanner.fault == ""
    assert span == result
    assert scanner.version == "2.0"
    if isinstance(members["id"], int):
        assert scanner.id == members["id"]
    assert scanner.result_is_object is isinstance(found, dict)
    assert scanner.is_error is (isinstance(found, dict) and found.get("isError") is True)
    assert scanner.members == members.keys() & {"jsonrpc", "id", "result", "error", "method"}


@settings(derandomize=True, deadline=None, max_examples=60)
@given(messages())
def test_a_message_is_the_same_byte_by_byte(message: tuple[bytes, bytes, dict[str, Any]]) -> None:
    """The smallest pieces that there are: every escape and every name is cut."""
    line, result, _ = message
    scanner, span = scanned(bytes([byte]) for byte in line)

    assert (scanner.fault, span) == ("", result)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(messages(), CUTS, st.integers(0, 10_000), st.binary(max_size=2) | st.sampled_from([*'{}[]",:\\ ']))
def test_a_damaged_message_is_refused_or_read_as_json_reads_it(
    message: tuple[bytes, bytes, dict[str, Any]], places: list[int], at: int, instead: bytes | str
) -> None:
    """It may let rubbish pass inside of values; it never refuses what is JSON, and never fails otherwise."""
    line = message[0]
    at %= len(line)
    damaged = line[:at] + (instead.encode() if isinstance(instead, str) else instead) + line[at + 1 :]
    scanner, span = scanned(cut(damaged, places))
    try:
        whole = json.loads(damaged)
    except ValueError:
        return
    assume(isinstance(whole, dict) and "stands twice" not in scanner.fault)

    assert scanner.fault == ""
    if "result" in whole:
        assert json.loads(span) == whole["result"]
        assert scanner.is_error is (isinstance(whole["result"], dict) and whole["result"].get("isError") is True)
    if isinstance(whole.get("id"), int):
        assert scanner.id == whole["id"]


# --- messages that are longer than a window -----------------------------------------------------------------------

RECORD = {"id": 7, "name": 'a "b" \\', "tags": ["x", {"result": []}], "none": None}
LARGE: dict[str, Any] = {
    "a long text": {"content": [{"type": "text", "text": 'a line of text, "quoted" \\ and \u20ac\n' * 20_000}]},
    "a long name": {"x" * 300_000: {"isError": True}, "isError": True},
    "many records": {"content": [], "structuredContent": {"records": [RECORD] * 8_000}, "isError": True},
    "many members": {**{f"member {number}": [number] for number in range(20_000)}, "isError": False},
    "many nests": {"n": [json.loads("[" * 90 + "]" * 90)] * 3_000},
    "deeper nests than are skimmed": {"n": [json.loads("[" * 300 + "]" * 300)] * 500, "isError": True},
    "a text as result": "x" * 300_000,
    "a list as result": [{"isError": True, "id": 5}] * 30_000,
}


@pytest.mark.parametrize("result", LARGE.values(), ids=LARGE)
@pytest.mark.parametrize("id_last", [True, False], ids=["id last", "id first"])
def test_a_long_message_is_read_whole_or_in_any_pieces(result: Any, id_last: bool) -> None:
    """The same way."""
    members = {"jsonrpc": "2.0", "id": 12, "result": result}
    if id_last:
        members = dict(reversed(members.items()))
    line = json.dumps(members).encode()
    shuffled = random.Random(1)
    for sizes in ([len(line)], [LARGE_PIECE], [1, 7, 65_536, 100_000], [shuffled.randint(1, 500) for _ in range(99)]):
        ends = itertools.accumulate(itertools.cycle(sizes))
        places = list(itertools.takewhile(lambda end: end < len(line), ends))
        scanner, span = scanned(cut(line, places))

        assert (scanner.fault, scanner.id) == ("", 12)
        assert span == json.dumps(result).encode()
        assert scanner.is_error is (isinstance(result, dict) and result.get("isError") is True)


KIB = 1024
MIB = 1024 * KIB
ENDLESS: dict[str, list[bytes]] = {
    "a text": [b'{"result":{"content":"', b"x" * MIB],
    "an id": [b'{"id":"', b"x" * MIB],
    "a number as id": [b'{"id":', b"9" * MIB],
    "a name": [b'{"', b"x" * MIB],
    "a name in the result": [b'{"result":{"', b"\\n" * (MIB // 2)],
    "an error": [b'{"error":{"message":"', b"x" * MIB],
    "names": [b'{"result":{', b'"a":1,' * (32 * KIB // 6)],
    "lists in lists": [b'{"result":[', b"[" * MIB],
    "objects in lists": [b'{"result":[', b'{"a":[],"b":{}},' * (MIB // 16)],
    "rubbish": [b"Hello!", b"x" * MIB],
    "spaces": [b"", b" " * MIB],
}


@pytest.mark.parametrize("pieces", ENDLESS.values(), ids=ENDLESS)
def test_nothing_is_held_of_a_message_without_end(pieces: list[bytes]) -> None:
    """Whatever it repeats."""
    begin, again = pieces
    scanner = AnswerScanner()
    scanner.feed(begin)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(4):
            for at in range(0, len(again), LARGE_PIECE):
                scanner.feed(again[at : at + LARGE_PIECE])
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert after - before < 8 * 1024
    scanner.close()
    assert scanner.fault


# --- what it says ---------------------------------------------------------------------------------------------


def test_of_an_error_the_beginning_is_kept() -> None:
    """And its size; a short one is whole."""
    short = {"code": -32000, "message": "no"}
    long = {"code": -32000, "message": "x" * 100_000}
    found = [scanned([json.dumps({"jsonrpc": "2.0", "error": error, "id": 1}).encode()])[0] for error in (short, long)]

    assert [scanner.members for scanner in found] == [{"jsonrpc", "error", "id"}] * 2
    assert found[0].error == json.dumps(short).encode()
    assert found[1].error == json.dumps(long).encode()[:ERROR_HEAD_BYTES]
    assert found[1].error_size == len(json.dumps(long))


def test_a_servers_own_message_is_known_by_its_method() -> None:
    """It has no result."""
    scanner, span = scanned([b'{"jsonrpc":"2.0","method":"notifications/message","params":{"result":{"a":1}}}'])

    assert (scanner.fault, scanner.members, span) == ("", {"jsonrpc", "method"}, b"")


@pytest.mark.parametrize("name", ["id", "jsonrpc", "method", "result", "error"])
def test_a_member_that_counts_stands_once(name: str) -> None:
    """The first one may be gone already when the second comes, so none of them counts; others may be repeated."""
    scanner, _ = scanned([b'{"a":1,"a":2,%s:1,"b":{},"%s":2}' % (escaped(name).encode(), name.encode())])

    assert scanner.fault == f"its member {name!r} stands twice"


@pytest.mark.parametrize("last", [True, False])
def test_of_two_words_on_being_an_error_the_last_one_counts(last: bool) -> None:
    """As `json` does it."""
    result = b'{"isError":%s,"isError":%s}' % tuple(json.dumps(word).encode() for word in (not last, last))
    scanner, span = scanned([b'{"result":' + result + b"}"])

    assert (scanner.is_error, span) == (last, result)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"", "ends too early"),
        (b"   ", "ends too early"),
        (b'{"id":1', "ends too early"),
        (b'{"id":1,"a":"x\\"}', "ends too early"),
        (b"[1]", "no object"),
        (b"Listening on stdio", "no object"),
        (b'{"id":1}{"id":2}', "more follows"),
        (b'{"id":1,}', "a name is missing"),
        (b"{1:1}", "a name is missing"),
        (b'{"id" 1}', "a colon is missing"),
        (b'{"id":,"a":1}', "a value is missing"),
        (b'{"id":1 "a":1}', "a comma is missing"),
        (b'{"a":tru"e"}', "a comma is missing"),
        (b'{"result":{"a":[1}}}', "brackets do not match"),
        (b'{"result":[' + b'{"a":[1}},' * 10_000, "brackets do not match"),
        (b'{"result":[[' + b"{}" * 40_000 + b"}" + b"{}" * 40_000, "brackets do not match"),
        (b'{"result":' + b"[" * (MAX_DEPTH + 1), "nested more than 1000 deep"),
        (b'{"\\x":1}', "no JSON"),
        (b'{"\xff":1}', "no JSON"),
        (b'{"id":1.2.3}', "no JSON"),
    ],
    ids=lambda value: value[:24].decode("latin-1") if isinstance(value, bytes) else value,
)
def test_what_is_no_message_is_refused_with_the_reason(line: bytes, fault: str) -> None:
    """Nothing is handed out after that."""
    scanner, _ = scanned([line])

    assert fault in scanner.fault
    assert scanner.feed(b'{"result":1}') == b""
