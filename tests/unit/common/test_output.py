"""Output as a stream: the same result however it is cut into pieces, in bounded memory, and closed by its reader."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import tracemalloc
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common.output import (
    OUTPUT_CHUNK_BYTES,
    Chunker,
    Digest,
    Line,
    Summary,
    as_text,
    chunks,
    collect,
    estimated_bytes,
    lines,
    process,
)
from tests.unit.common.bus_rig import DEADLINE_S

TEXTS = st.text(st.sampled_from("ab\n\ré東\U0001f5fc") | st.characters(codec="utf-8"), max_size=60).map(str.encode)
LONG = st.builds(
    lambda text, times: text.encode() * times, st.sampled_from(["x", "é", "東", "\U0001f5fc"]), st.just(40)
)
HALVES = st.sampled_from(
    [b"\xc3", b"\xe6\x9d", b"\xf0\x9f\x97", b"\x80\x80\x80\x80", b"\xff\xfe", b"\xed\xa0", b"\xf5\x80", b"\r\n", b"\n"]
)
STREAMS = (
    TEXTS | st.binary(max_size=60) | st.lists(TEXTS | LONG | HALVES | st.binary(max_size=9), max_size=6).map(b"".join)
)
CUTS = st.lists(st.integers(0, 12), max_size=40)
BOUNDS = st.integers(4, 24)


def cut(data: bytes, sizes: Iterable[int]) -> Iterator[bytes]:
    """The data in pieces of these sizes, some of them empty, and the rest as one."""
    for size in sizes:
        yield data[:size]
        data = data[size:]
    yield data


def unfinished(data: bytes) -> int:
    """How many bytes at the end begin a character, as the strict decoder says it; half a surrogate counts as one."""
    for size in range(1, min(3, len(data)) + 1):
        tail = data[-size:]
        try:
            tail.decode()
        except UnicodeDecodeError as exc:
            if (exc.start == 0 and exc.reason == "unexpected end of data") or (
                size == 2 and b"\xed\xa0" <= tail <= b"\xed\xbf"
            ):
                return size
    return 0


def chunks_of(data: bytes, bound: int) -> list[bytes]:
    """The rule, for data that is there as a whole."""
    found = []
    while len(data) >= bound:
        end = data[:bound].rfind(b"\n") + 1 or bound - unfinished(data[:bound])
        found.append(data[:end])
        data = data[end:]
    return [*found, data] if data else found


def lines_of(data: bytes, bound: int) -> list[Line]:
    """The rule, for data that is there as a whole."""
    found = []
    *ended, last = data.split(b"\n")
    for line in [*(line.removesuffix(b"\r") for line in ended), *([last] if last else [])]:
        rest = line
        while len(rest) > bound:
            end = bound - unfinished(rest[:bound])
            found.append(Line(rest[:end].decode(errors="replace"), cut=True))
            rest = rest[end:]
        found.append(Line(rest.decode(errors="replace"), cut=False))
    return found


class Source:
    """A stream that tells what was asked of it. Its generator is kept, so that only an explicit close ends it."""

    def __init__(self, pieces: Iterable[bytes], *, never_ends: bool = False, fails: bool = False) -> None:
        self.asked = 0
        self.closed = False
        self.waits = asyncio.Event()
        self._never_ends = never_ends
        self._fails = fails
        self._pieces = self._read(pieces)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._pieces

    async def _read(self, pieces: Iterable[bytes]) -> AsyncGenerator[bytes]:
        try:
            for piece in pieces:
                self.asked += 1
                yield piece
            if self._fails:
                raise ConnectionResetError("the engine has gone")
            if self._never_ends:
                self.waits.set()
                await asyncio.Event().wait()
        finally:
            self.closed = True


async def every(stream: AsyncIterable[bytes]) -> list[bytes]:
    return [piece async for piece in stream]


# Chunks.


@given(STREAMS, CUTS, BOUNDS)
@example("é".encode() * 4, [1], 5)
@example(b"\n" * 8, [], 4)
def test_chunks_are_the_same_however_the_stream_is_cut(data: bytes, sizes: list[int], bound: int) -> None:
    """Each ends with the last line feed in its bound, else before an unfinished character."""
    chunker = Chunker(bound)
    found = []
    for piece in cut(data, sizes):
        found += chunker.feed(piece)
        assert chunker.waiting < bound
    found += [last] if (last := chunker.close()) else []

    assert found == chunks_of(data, bound)
    assert b"".join(found) == data
    assert all(1 <= len(chunk) <= bound for chunk in found)
    assert chunker.waiting == 0


@given(TEXTS | st.lists(TEXTS | LONG, max_size=6).map(b"".join), CUTS, st.lists(st.booleans()), BOUNDS)
def test_chunks_of_text_are_text_and_flushing_changes_that_no_more_than_cutting(
    data: bytes, sizes: list[int], flushes: list[bool], bound: int
) -> None:
    """Flushed between any two pieces, by lines or by characters."""
    chunker = Chunker(bound)
    found = []
    partials = iter(flushes)
    for piece in cut(data, sizes):
        found += chunker.feed(piece)
        if (partial := next(partials, None)) is not None:
            found.append(chunker.flush(partial=partial))
    found.append(chunker.close())

    assert b"".join(found) == data
    assert "".join(chunk.decode() for chunk in found) == data.decode()
    assert max(map(len, found)) <= bound


@given(STREAMS)
def test_flush_takes_whole_lines_and_with_partial_whole_characters(data: bytes) -> None:
    """Of what is no UTF-8 at most three bytes are held back."""
    chunker = Chunker(4096)
    chunker.feed(data)

    by_line = chunker.flush(partial=False)
    by_character = chunker.flush(partial=True)

    assert by_line == data[: data.rfind(b"\n") + 1]
    assert chunker.waiting == unfinished(data) <= 3
    assert by_line + by_character + chunker.close() == data


def test_flush_of_a_line_that_has_not_ended_takes_nothing() -> None:
    """It waits for its end, or for `partial`."""
    chunker = Chunker()
    chunker.feed(b"progress: 10 %")

    assert chunker.flush(partial=False) == b""
    assert chunker.waiting == 14
    assert chunker.flush(partial=True) == b"progress: 10 %"
    assert chunker.flush(partial=True) == b""


def test_a_chunk_that_is_just_full_does_not_wait() -> None:
    """The next byte may be long in coming."""
    chunker = Chunker(8)

    assert chunker.feed(b"1234567") == []
    assert chunker.feed(b"\n") == [b"1234567\n"]


def test_one_large_piece_comes_out_in_chunks_of_the_default_size() -> None:
    """A piece may be larger than many chunks."""
    chunker = Chunker()
    data = bytes(10 * OUTPUT_CHUNK_BYTES + 5)

    assert list(map(len, chunker.feed(data))) == [OUTPUT_CHUNK_BYTES] * 10
    assert chunker.close() == bytes(5)


@pytest.mark.parametrize("piece", [b"ab", b"0123456789abcde\n" * 2048, b"x" * 32768], ids=["tiny", "lines", "no lines"])
def test_a_chunker_holds_no_more_than_a_chunk_whatever_passes(piece: bytes) -> None:
    """Nor do many small pieces cost more than their bytes. Twice: the chunk that is cut is there beside the rest."""
    chunker = Chunker()
    tracemalloc.start()
    try:
        for _ in range(4 * OUTPUT_CHUNK_BYTES // len(piece)):
            chunker.feed(piece)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 2.5 * OUTPUT_CHUNK_BYTES


@pytest.mark.parametrize("bound", [3, 0, -1])
def test_a_bound_that_cannot_hold_every_character_is_refused(bound: int) -> None:
    """Nothing could be cut, or not as text."""
    with pytest.raises(ValueError, match=f"max_bytes is {bound}, must be at least 4"):
        Chunker(bound)


@pytest.mark.parametrize(
    ("chunk", "expected"),
    [(b"", ""), ("zwölf 東京".encode(), "zwölf 東京"), (b"\xff\x00", b"\xff\x00"), (b"ok\xc3", b"ok\xc3")],
)
def test_a_chunk_is_text_if_all_of_it_is(chunk: bytes, expected: str | bytes) -> None:
    """Nothing is replaced: the reader gets the bytes as they were."""
    assert as_text(chunk) == expected


@given(STREAMS, CUTS, BOUNDS)
async def test_a_stream_in_chunks_is_cut_by_the_same_rule(data: bytes, sizes: list[int], bound: int) -> None:
    """No chunk is empty."""
    source = Source(cut(data, sizes))

    assert await every(chunks(source, bound)) == chunks_of(data, bound)
    assert source.closed


async def test_a_piece_is_asked_for_only_when_its_chunk_is() -> None:
    """The reader sets the pace."""
    source = Source([b"1234\n"] * 3)
    async with aclosing(chunks(source, 5)) as stream:
        await anext(stream)
        assert source.asked == 1
        await anext(stream)
        assert source.asked == 2


# Processing.


@given(STREAMS, CUTS)
async def test_processing_hands_on_every_piece_and_sums_up_the_whole(data: bytes, sizes: list[int]) -> None:
    """Size and hash are those of the uncut stream."""
    handled = []

    async def handle(piece: bytes) -> None:
        handled.append(piece)

    summary = await process(Source(cut(data, sizes)), handle)

    assert handled == list(cut(data, sizes))
    assert summary == Summary(len(data), hashlib.sha256(data).hexdigest())


async def test_the_next_piece_is_not_asked_for_before_the_last_was_handled() -> None:
    """A slow handler slows the source."""
    source = Source([b"one", b"two", b"three"])
    asked = []

    async def handle(_piece: bytes) -> None:
        await asyncio.sleep(0)  # lets everything else run
        asked.append(source.asked)

    await process(source, handle)

    assert asked == [1, 2, 3]


async def test_what_the_handler_raises_comes_out_and_closes_the_source() -> None:
    """The rest is not read."""
    source = Source([b"one", b"two"])

    async def handle(_piece: bytes) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        await process(source, handle)

    assert source.closed
    assert source.asked == 1


def test_a_digest_can_be_summed_up_on_the_way() -> None:
    """And goes on after it."""
    digest = Digest()
    digest.update(b"one")

    assert digest.summary() == Summary(3, hashlib.sha256(b"one").hexdigest())

    digest.update(b"two")

    assert digest.size == 6
    assert digest.summary() == Summary(6, hashlib.sha256(b"onetwo").hexdigest())


# Collecting.


@given(STREAMS, CUTS, st.integers(-1, 1))
async def test_what_is_within_the_threshold_is_whole_and_what_is_more_is_a_stream(
    data: bytes, sizes: list[int], beyond: int
) -> None:
    """One byte decides."""
    source = Source(cut(data, sizes))

    found = await collect(source, len(data) - beyond)

    if isinstance(found, bytes):
        assert beyond <= 0
        assert found == data
    else:
        assert beyond == 1
        assert b"".join(await every(found)) == data
    assert source.closed


async def test_collecting_reads_no_further_than_the_piece_that_is_too_much() -> None:
    """The rest is read at the pace of whoever reads the stream, which begins with what was there already."""
    source = Source([b"aa", b"bb", b"cc", b"dd"])

    found = await collect(source, 5)

    assert not isinstance(found, bytes)
    assert source.asked == 3
    assert await anext(found) + await anext(found) == b"aabbcc"
    assert source.asked == 3
    assert await every(found) == [b"dd"]


async def test_collecting_holds_no_more_than_the_threshold_and_one_piece() -> None:
    """However small the pieces are, and not twice when the stream begins."""
    threshold = 256 * 1024
    source = Source(b"ab" for _ in range(threshold))
    tracemalloc.start()
    try:
        found = await collect(source, threshold)
        assert not isinstance(found, bytes)
        size = len(await anext(found))
        async for piece in found:
            size += len(piece)
            held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert size == 2 * threshold
    assert peak < 1.5 * threshold
    assert held < 0.1 * threshold


async def test_a_first_piece_that_is_too_much_is_the_first_of_the_stream() -> None:
    """Nothing empty stands before it."""
    found = await collect(Source([b"aaaa", b"bb"]), 3)

    assert not isinstance(found, bytes)
    assert await every(found) == [b"aaaa", b"bb"]


@pytest.mark.parametrize("read", [0, 1, 2, 3])
async def test_closing_the_collected_stream_closes_the_source(read: int) -> None:
    """Also one that nobody has read from."""
    source = Source([b"aa", b"bb", b"cc", b"dd"])
    found = await collect(source, 3)
    assert not isinstance(found, bytes)
    for _ in range(read):
        await anext(found)

    assert not source.closed
    await found.aclose()
    assert source.closed


# Lines.


@given(STREAMS, CUTS, BOUNDS)
@example(b"1234\r\n", [5], 4)
@example(b"1234\r5", [5], 4)
@example(b"1234\r", [5], 4)
async def test_lines_are_the_same_however_the_stream_is_cut(data: bytes, sizes: list[int], bound: int) -> None:
    """Long ones come in parts that end at a character."""
    found = [line async for line in lines(Source(cut(data, sizes)), bound)]

    assert found == lines_of(data, bound)


@given(STREAMS, CUTS, BOUNDS)
async def test_the_parts_of_a_line_are_its_text_as_if_decoded_at_once(
    data: bytes, sizes: list[int], bound: int
) -> None:
    r"""What `str.split` gives for the decoded whole, less the \r before a \n and an empty end."""
    *ended, last = data.decode(errors="replace").split("\n")
    expected = [*(line.removesuffix("\r") for line in ended), *([last] if last else [])]

    found = [""]
    async for text, is_cut in lines(Source(cut(data, sizes)), bound):
        found[-1] += text
        if not is_cut:
            found.append("")

    assert found == [*expected, ""]


@given(TEXTS | st.lists(TEXTS | LONG, max_size=6).map(b"".join), CUTS, BOUNDS)
async def test_a_part_of_a_line_is_within_the_bound_and_no_shorter_than_it_must_be(
    data: bytes, sizes: list[int], bound: int
) -> None:
    """Shorter by less than a character."""
    async for text, is_cut in lines(Source(cut(data, sizes)), bound):
        assert "\ufffd" in data.decode() or "\ufffd" not in text
        assert len(text.encode()) <= bound
        assert not is_cut or len(text.encode()) > bound - 4


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"\n", [("", False)]),
        (b"one\ntwo", [("one", False), ("two", False)]),
        (b"one\r\n\r\ntwo\r", [("one", False), ("", False), ("two\r", False)]),
        (b"10 %\r20 %\r\n", [("10 %\r20 ", True), ("%", False)]),
        (b"12345678\r\n", [("12345678", False)]),
        (b"123456789\n", [("12345678", True), ("9", False)]),
        ("1234567é\n".encode(), [("1234567", True), ("é", False)]),
        (b"bad \xff\n", [("bad \ufffd", False)]),
    ],
)
async def test_lines_of_at_most_eight_bytes(data: bytes, expected: list[tuple[str, bool]]) -> None:
    """The rules by example."""
    assert [line async for line in lines(Source([data]), 8)] == expected


async def test_a_line_is_there_as_soon_as_its_end_is() -> None:
    """Or a server that waits for an answer would wait for ever."""
    source = Source([b"one\ntw", b"o\n"])
    async with aclosing(lines(source, 8)) as stream:
        assert await anext(stream) == ("one", False)
        assert source.asked == 1


# Whoever reads from a source closes it.


async def nothing(_piece: bytes) -> None:
    pass


async def chunk_all(source: AsyncIterable[bytes]) -> None:
    await every(chunks(source, 4))


async def process_all(source: AsyncIterable[bytes]) -> None:
    await process(source, nothing)


async def collect_whole(source: AsyncIterable[bytes]) -> None:
    await collect(source, 1000)


async def collect_stream(source: AsyncIterable[bytes]) -> None:
    found = await collect(source, 3)
    assert not isinstance(found, bytes)
    await every(found)


async def line_all(source: AsyncIterable[bytes]) -> None:
    async for _ in lines(source, 4):
        pass


READERS = pytest.mark.parametrize("read", [chunk_all, process_all, collect_whole, collect_stream, line_all])


@READERS
async def test_a_cancelled_reader_closes_its_source(read: Callable[[AsyncIterable[bytes]], Awaitable[None]]) -> None:
    """While it waits for more."""
    source = Source([b"one\n", b"two\n"], never_ends=True)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(awaited(read(source)))
        async with asyncio.timeout(DEADLINE_S):
            await source.waits.wait()
        task.cancel()

    assert task.cancelled()
    assert source.closed


async def awaited(reading: Awaitable[None]) -> None:
    await reading


@READERS
async def test_what_the_source_raises_comes_out(read: Callable[[AsyncIterable[bytes]], Awaitable[None]]) -> None:
    """A stream that broke off is not taken for a whole one."""
    with pytest.raises(ConnectionResetError, match="the engine has gone"):
        await read(Source([b"one\n", b"two\n"], fails=True))


@READERS
async def test_a_source_that_is_no_generator_is_read_too(
    read: Callable[[AsyncIterable[bytes]], Awaitable[None]],
) -> None:
    """It has nothing to close."""

    class Countdown:
        left = 3

        def __aiter__(self) -> AsyncIterator[bytes]:
            return self

        async def __anext__(self) -> bytes:
            if not self.left:
                raise StopAsyncIteration
            self.left -= 1
            return b"one\n"

    source = Countdown()
    await read(source)

    assert source.left == 0


@pytest.mark.parametrize("stream_of", [chunks, lines])
async def test_closing_a_stream_closes_its_source(
    stream_of: Callable[[AsyncIterable[bytes], int], AsyncGenerator[object]],
) -> None:
    """At once, not when the garbage collector comes."""
    source = Source([b"one\n", b"two\n"])
    stream = stream_of(source, 4)
    await anext(stream)

    await stream.aclose()

    assert source.closed


async def test_a_cancelled_handler_closes_the_source() -> None:
    """Though the source itself waits for nothing."""
    source = Source([b"one", b"two"])
    handling = asyncio.Event()

    async def handle(_piece: bytes) -> None:
        handling.set()
        await asyncio.Event().wait()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(process(source, handle))
        async with asyncio.timeout(DEADLINE_S):
            await handling.wait()
        task.cancel()

    assert task.cancelled()
    assert source.closed


# Memory of a value.


def records() -> object:
    rows = [{"id": n, "name": f"name {n}", "tags": ["a", str(n)], "ok": True, "x": n / 7} for n in range(2000)]
    return json.loads(json.dumps(rows))


@pytest.mark.parametrize(
    "make",
    [
        records,
        lambda: [n / 7 for n in range(10_000)],
        lambda: list(range(1000, 20_000)),
        lambda: "東京" * 50_000,
        lambda: bytearray(100_000),
        lambda: [bytes([n % 256]) * 100 for n in range(2000)],
        lambda: {str(n) for n in range(3000)},
        lambda: tuple((n / 3, str(n)) for n in range(3000)),
        lambda: {f"key {n}": None for n in range(3000)},
        lambda: frozenset(f"item {n}" for n in range(3000)),
    ],
    ids=["records", "floats", "ints", "text", "bytearray", "bytes", "set", "tuples", "keys", "frozenset"],
)
def test_the_estimate_of_a_value_is_near_to_what_it_takes(make: Callable[[], object]) -> None:
    """As tracemalloc counts it."""
    gc.collect()
    tracemalloc.start()
    try:
        value = make()
        gc.collect()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert 0.8 * taken < estimated_bytes(value) < 1.25 * taken


def test_a_value_that_is_nested_deeply_is_estimated_too() -> None:
    """Deeper than Python calls."""
    value: list[object] = []
    for _ in range(100_000):
        value = [value]

    assert estimated_bytes(value) > 100_000 * 56
    while value:
        value = value[0]  # type: ignore[assignment]  # taken apart, which is easier on C's stack than all at once


def test_what_is_referred_to_twice_counts_once() -> None:
    """A value that holds itself has an end too."""
    text = "x" * 10_000
    once = estimated_bytes([text, None])
    around: list[object] = [text, None]
    around[1] = around

    assert estimated_bytes([text, text]) == once - estimated_bytes(None)
    assert estimated_bytes(around) == once - estimated_bytes(None)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(), st.lists))
def test_a_value_takes_no_less_than_a_part_of_it(value: object) -> None:
    """Whatever it is made of."""
    assert estimated_bytes([value]) > estimated_bytes(value) > 0
