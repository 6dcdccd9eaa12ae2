"""Answers of an MCP server that are too large to be held: their `result` waits in a file without a name."""

from __future__ import annotations

import contextlib
import json
import tempfile
import weakref
from collections.abc import AsyncGenerator
from typing import IO, Any, Final

from common.job_errors import JobError
from common.output import OUTPUT_CHUNK_BYTES
from worker.errors import AnswerNotKept, OutputTooLarge, ResultTooLarge, ToolProtocolError
from worker.json_answer import AnswerScanner

MAX_PARSED_BYTES: Final = 16 * 1024 * 1024
"""The largest answer to a question of ours, such as a list of tools."""
_WRITE_BYTES: Final = 256 * 1024


class LargeAnswer:
    """The `result` of one answer, as JSON; MCP's CallToolResult where a tool was called.

    `close()` frees its file; of an answer that nobody has taken it is freed with the answer itself.
    """

    def __init__(self, file: IO[bytes], size: int, is_error: bool) -> None:
        self._file = file
        self._discard = weakref.finalize(self, _discard, file)
        self.size = size
        """Bytes."""
        self.is_error = is_error

    async def chunks(self) -> AsyncGenerator[bytes]:
        """All of it, from the beginning, in chunks of OUTPUT_CHUNK_BYTES."""
        self._file.seek(0)
        while chunk := self._file.read(OUTPUT_CHUNK_BYTES):
            yield chunk

    def parsed(self) -> dict[str, Any]:
        """
        Raises:
            ResultTooLarge: above MAX_PARSED_BYTES.
        """
        if self.size > MAX_PARSED_BYTES:
            raise ResultTooLarge(self.size, MAX_PARSED_BYTES)
        self._file.seek(0)
        try:
            result: dict[str, Any] = json.load(self._file)
        except (ValueError, RecursionError) as exc:
            raise ToolProtocolError({"message": f"the result is not JSON: {exc}"}) from exc
        return result

    def close(self) -> None:
        self._discard()


class LargeLine:
    """One line of a server's stdout that is being read; at most `most` bytes of its result are kept."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._scanner = AnswerScanner()
        self._file: IO[bytes] | None = None
        self._size = 0
        self._not_kept: AnswerNotKept | None = None

    @property
    def id(self) -> Any:
        """Of the answered request; None where the line is no answer, or breaks off before it says of what it is."""
        scanner = self._scanner
        is_answer = scanner.version == "2.0" and "method" not in scanner.members
        return scanner.id if is_answer else None

    def feed(self, data: bytes) -> None:
        """The next piece. Never fails: what cannot be kept is told by `answer()`, and the line is read to its end."""
        kept = self._scanner.feed(data)
        self._size += len(kept)
        if self._size > self._most or self._scanner.fault:
            self.drop()
        elif kept and self._not_kept is None:
            try:
                if self._file is None:
                    self._file = tempfile.TemporaryFile(buffering=_WRITE_BYTES)  # noqa: SIM115 - closed with the answer
                self._file.write(kept)
            except OSError as exc:
                self._give_up(exc)

    def end(self) -> None:
        """The line has ended."""
        self._scanner.close()
        if self._file is not None:
            try:
                self._file.flush()
            except OSError as exc:
                self._give_up(exc)

    def answer(self) -> LargeAnswer:
        """
        Raises:
            JobError: if it is an error, or could not be kept.
        """
        scanner = self._scanner
        if scanner.error.startswith(b"{"):  # an error of null is none: some servers write it beside their result
            failure: JobError = _protocol_error(scanner.error, scanner.error_size)
        elif scanner.fault:
            failure = ToolProtocolError({"message": f"the answer is not JSON: {scanner.fault}"})
        elif not scanner.result_is_object:
            failure = ToolProtocolError({"message": "the answer has neither a result nor an error"})
        elif self._size > self._most:
            failure = OutputTooLarge(self._most, self._size)
        elif self._not_kept is not None:
            failure = self._not_kept
        else:
            assert self._file is not None, "an object has two bytes at least"
            file, self._file = self._file, None
            return LargeAnswer(file, self._size, scanner.is_error)
        self.drop()
        raise failure

    def drop(self) -> None:
        """Free what was kept."""
        if self._file is not None:
            _discard(self._file)
            self._file = None

    def _give_up(self, why: OSError) -> None:
        self._not_kept = AnswerNotKept(self._size, why.strerror or str(why))
        self.drop()


def _protocol_error(head: bytes, size: int) -> ToolProtocolError:
    if size == len(head):
        with contextlib.suppress(ValueError, RecursionError):
            return ToolProtocolError(json.loads(head))
    return ToolProtocolError({"message": head.decode("utf-8", "replace")})


def _discard(file: IO[bytes]) -> None:
    with contextlib.suppress(OSError):  # closing tries once more to write what the disk has not taken; it is not wanted
        file.close()
