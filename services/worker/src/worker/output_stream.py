"""One stream of what a job's tool writes: cut into chunks, collected up to a threshold, spilled beyond it.

Bookkeeping only: `worker.outbox` moves the chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from common.object_writer import ObjectWriter
from common.output import OUTPUT_CHUNK_BYTES, Chunker, Digest, Summary, as_text

StreamName = Literal["stdout", "stderr", "result", "file", "text"]

PREVIEW_BYTES: Final = 32 * 1024
"""What is repeated of a stream that is not whole in the terminal event: its end, of a `result` its beginning."""


@dataclass(frozen=True)
class OutputLimits:
    """Bytes."""

    collect: int = 1024 * 1024
    """A stream up to this size stands whole in the terminal event; a larger one is spilled to the object store."""
    offer: int = 8 * 1024 * 1024
    """A stream above this size is offered as an artifact."""
    most: int = 2 * 1024**3
    """What one job may write."""


class Written(NamedTuple):
    """A stream as far as a result can repeat it."""

    data: bytes
    whole: bool
    """False: `data` is but a preview."""

    @property
    def text(self) -> str:
        return self.data.decode("utf-8", "replace")


class Cut(NamedTuple):
    """Where a chunk goes: into the object once the stream has a `writer`, before that into its event."""

    offset: int
    before: list[bytes]
    """What left in events until now and has to stand in the object before this chunk."""


class OutputStream:
    """Pass everything through `take()`, and each chunk of it, or of `flush()` and `close()`, through `cut()`."""

    def __init__(
        self, name: StreamName, limits: OutputLimits, *, spill_all: bool, new_writer: Callable[[], ObjectWriter]
    ) -> None:
        self.name = name
        self.writer: ObjectWriter | None = None
        """The object that the stream is spilled to, from the moment on when it is."""
        self.is_text = True
        """Until now everything was valid UTF-8."""
        self._collect = 0 if spill_all else limits.collect
        self._new_writer = new_writer
        self._digest = Digest()
        self._chunker = Chunker()
        self._offset = 0
        self._collected = bytearray()
        """All of it while it is not spilled, then the preview."""

    @property
    def waiting(self) -> bool:
        """Is there something that is in no chunk yet?"""
        return self._chunker.waiting > 0

    def take(self, data: bytes) -> list[bytes]:
        """Take in what the tool wrote. Returns the chunks that are full."""
        self._digest.update(data)
        self._collected += data
        if self.writer is not None:
            self._shorten()
        return self._chunker.feed(data)

    def flush(self, *, partial: bool) -> bytes:
        """What waits, in whole lines; with `partial` in whole characters."""
        return self._chunker.flush(partial=partial)

    def close(self) -> bytes:
        """What waits at the end of the stream."""
        return self._chunker.close()

    def cut(self, chunk: bytes) -> Cut:
        offset = self._offset
        self._offset += len(chunk)
        self.is_text = self.is_text and (chunk.isascii() or isinstance(as_text(chunk), str))
        before: list[bytes] = []
        if self.writer is None and self._offset > self._collect:
            self.writer = self._new_writer()
            left = bytes(self._collected[:offset])
            before = [left[at : at + OUTPUT_CHUNK_BYTES] for at in range(0, offset, OUTPUT_CHUNK_BYTES)]
            self._shorten()
        return Cut(offset, before)

    def written(self) -> Written:
        return Written(bytes(self._collected), self.writer is None)

    def summary(self) -> Summary:
        """Of all that was taken."""
        return self._digest.summary()

    def _shorten(self) -> None:
        if self.name == "result":
            del self._collected[PREVIEW_BYTES:]
        else:
            del self._collected[: max(0, len(self._collected) - PREVIEW_BYTES)]
