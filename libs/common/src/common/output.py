"""Output as a stream of bytes: cut, told apart, measured and read on without ever being held whole.

Every size is in bytes of the stream, not in characters. A generator of this module closes what it reads from when it
ends, is closed or is cancelled; one that was never started has nothing to close.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import sys
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

_Piece = TypeVar("_Piece")

OUTPUT_CHUNK_BYTES: Final = 128 * 1024
"""The largest piece of a stream that one event carries."""
_CHARACTER_BYTES: Final = 4
"""The longest UTF-8 sequence. A smaller bound could not keep every character whole."""


class Chunker:
    """Cuts one stream into chunks of at most `max_bytes`, which together are the stream.

    A full chunk ends with the last line feed within `max_bytes`. Without one it ends before an unfinished UTF-8
    sequence, so that chunks of text are text. Where it ends does not depend on the pieces that are fed.
    Less than `max_bytes` wait inside. Not to be shared between streams.
    """

    def __init__(self, max_bytes: int = OUTPUT_CHUNK_BYTES) -> None:
        """
        Raises:
            ValueError: if `max_bytes` cannot hold every character.
        """
        self._max_bytes = _checked(max_bytes)
        self._buffer = bytearray()

    @property
    def waiting(self) -> int:
        """Bytes that were fed and are in no chunk yet."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """Take a piece of the stream; the chunks that are full now. The rest waits for more, `flush()` or `close()`."""
        full: list[bytes] = []
        start = 0
        with memoryview(data) as view:
            while (room := self._max_bytes - len(self._buffer)) <= len(data) - start:
                self._buffer += view[start : start + room]
                start += room
                full.append(self._take(self._line_end() or self._text_end()))
            self._buffer += view[start:]
        return full

    def flush(self, *, partial: bool) -> bytes:
        """What waits, up to the last line feed; with `partial` up to the last complete character. b"" if nothing is."""
        return self._take(self._text_end() if partial else self._line_end())

    def close(self) -> bytes:
        """All that is left at the stream's end, be it half a character."""
        return self._take(len(self._buffer))

    def _line_end(self) -> int:
        return self._buffer.rfind(b"\n") + 1

    def _text_end(self) -> int:
        return len(self._buffer) - _unfinished(self._buffer)

    def _take(self, size: int) -> bytes:
        with memoryview(self._buffer) as view:
            taken = bytes(view[:size])
        del self._buffer[:size]
        return taken


def as_text(chunk: bytes) -> str | bytes:
    """The chunk as text if it is valid UTF-8, otherwise as it is."""
    try:
        return chunk.decode()
    except UnicodeDecodeError:
        return chunk


async def chunks(source: AsyncIterable[bytes], max_bytes: int = OUTPUT_CHUNK_BYTES) -> AsyncGenerator[bytes]:
    """The stream in chunks of 1 to `max_bytes`, cut as `Chunker` does."""
    chunker = Chunker(max_bytes)
    async with _closing(source) as pieces:
        async for piece in pieces:
            for chunk in chunker.feed(piece):
                yield chunk
        if last := chunker.close():
            yield last


@dataclass(frozen=True)
class Summary:
    """A whole stream in short."""

    size: int
    sha256: str
    """In hex."""


class Digest:
    """Counts and hashes a stream that passes by."""

    def __init__(self) -> None:
        self.size = 0
        self._sha256 = hashlib.sha256()

    def update(self, data: bytes) -> None:
        self.size += len(data)
        self._sha256.update(data)

    def summary(self) -> Summary:
        """Of what has passed so far; more may follow."""
        return Summary(self.size, self._sha256.hexdigest())


async def process(source: AsyncIterable[bytes], handle: Callable[[bytes], Awaitable[None]]) -> Summary:
    """Hand every piece to `handle`, one after the other: the next is not asked for before it has returned.

    Pieces are as large as they come; read from `chunks()` to bound them. Returns when the source has ended.
    What `handle` raises comes out here, and closes the source.
    """
    digest = Digest()
    async with _closing(source) as pieces:
        async for piece in pieces:
            digest.update(piece)
            await handle(piece)
    return digest.summary()


async def collect(source: AsyncIterable[bytes], threshold: int) -> bytes | AsyncGenerator[bytes]:
    """The whole if it has at most `threshold` bytes; otherwise a stream of what was read, and then of the rest.

    Holds at most the threshold and one piece. Whoever gets a stream closes it, and with it the source.
    """
    async with AsyncExitStack() as owned:
        pieces = await owned.enter_async_context(_closing(source))
        held = io.BytesIO()  # its value is no copy, and many small pieces cost no more than their bytes
        async for piece in pieces:
            if held.tell() + len(piece) > threshold:
                stream = _read_on(held.getvalue(), piece, pieces, owned.pop_all())
                await anext(stream)
                return stream
            held.write(piece)
        return held.getvalue()


async def _read_on(
    held: bytes, piece: bytes, pieces: AsyncIterator[bytes], owned: AsyncExitStack
) -> AsyncGenerator[bytes]:
    async with owned:
        yield b""  # for collect(): closing a generator that has not started would not close the source
        if held:
            yield held
        del held
        yield piece
        async for piece in pieces:
            yield piece


class Line(NamedTuple):
    """A line without its end, or a part of one that is too long."""

    text: str
    cut: bool
    """The same line goes on in the next part."""


async def lines(source: AsyncIterable[bytes], max_bytes: int) -> AsyncGenerator[Line]:
    r"""The stream's lines as text, ended by \n or \r\n; the last one may be without. A \r elsewhere is text.

    A line of more than `max_bytes`, its end not counted, comes in parts, each of at most `max_bytes` and of whole
    characters. What is not UTF-8 is replaced (U+FFFD), as if the line was decoded at once.
    """
    splitter = _Splitter(max_bytes)
    async with _closing(source) as pieces:
        async for piece in pieces:
            for line in splitter.feed(piece):
                yield line
        for line in splitter.close():
            yield line


class _Splitter:
    """Looks at every byte once: what waits has no line feed."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = _checked(max_bytes)
        self._buffer = bytearray()

    def feed(self, piece: bytes) -> Iterator[Line]:
        start = 0
        while (end := piece.find(b"\n", start)) >= 0:
            if not self._buffer and end - start <= self._max_bytes:
                yield Line(piece[start:end].removesuffix(b"\r").decode("utf-8", "replace"), False)
            else:
                self._buffer += piece[start:end]
                if self._buffer.endswith(b"\r"):
                    del self._buffer[-1:]
                yield from self._parts(self._max_bytes)
                yield self._take(len(self._buffer), cut=False)
            start = end + 1
        self._buffer += piece[start:]
        yield from self._parts(self._max_bytes + 1)  # the one byte more may be the \r of the line's end

    def close(self) -> Iterator[Line]:
        yield from self._parts(self._max_bytes)
        if self._buffer:
            yield self._take(len(self._buffer), cut=False)

    def _parts(self, enough: int) -> Iterator[Line]:
        while len(self._buffer) > enough:
            yield self._take(self._max_bytes - _unfinished(self._buffer[: self._max_bytes]), cut=True)

    def _take(self, size: int, *, cut: bool) -> Line:
        text = self._buffer[:size].decode("utf-8", "replace")
        del self._buffer[:size]
        return Line(text, cut)


def estimated_bytes(value: object) -> int:
    """About what a plain value takes in memory with all its parts, each counted once however often it is referred to.

    Parts are looked for in dict, list, tuple, set and frozenset. Allocators round up, so the truth is a little more.
    """
    seen: set[int] = set()
    found = [value]
    total = 0
    while found:
        item = found.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        total += sys.getsizeof(item)
        if isinstance(item, dict):
            found.extend(item.keys())
            found.extend(item.values())
        elif isinstance(item, list | tuple | set | frozenset):
            found.extend(item)
    return total


def _unfinished(data: bytearray) -> int:
    """How many bytes at the end, 0 to 3, begin a UTF-8 sequence that goes on behind them."""
    tail = data[1 - _CHARACTER_BYTES :]
    _, decoded = codecs.utf_8_decode(tail, "replace", False)
    return len(tail) - decoded


def _checked(max_bytes: int) -> int:
    if max_bytes < _CHARACTER_BYTES:
        raise ValueError(f"max_bytes is {max_bytes}, must be at least {_CHARACTER_BYTES}: the longest UTF-8 character")
    return max_bytes


@asynccontextmanager
async def _closing(source: AsyncIterable[_Piece]) -> AsyncIterator[AsyncIterator[_Piece]]:
    """The source's iterator, closed at the end if it can be: generators can, other iterators need not."""
    pieces = aiter(source)
    try:
        yield pieces
    finally:
        if isinstance(pieces, AsyncGenerator):
            await pieces.aclose()
