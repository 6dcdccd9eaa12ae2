"""Lines that a user types or a script pipes in, read without holding up the event loop."""

from __future__ import annotations

import asyncio
import os
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

READ_BYTES: Final = 64 * 1024
MAX_LINE_BYTES: Final = 4 * 1024 * 1024
"""A longer line comes in pieces: no gateway takes it whole."""


class Lines:
    """Made by `stdin_lines`. One reads at a time.

    Each read has a thread of its own, which nobody waits for at the end: a read of a terminal cannot be ended.
    """

    def __init__(self, *, edited: bool) -> None:
        self.edited = edited
        """A user sits at a terminal, and edits the lines with readline."""
        self._pending: asyncio.Future[str | None] | None = None
        self._unread = b""

    @property
    def abandoned(self) -> bool:
        """Is a line of a terminal still being read that nobody wants any more?"""
        return self.edited and self._pending is not None

    async def read(self, prompt: str) -> str | None:
        """The next line without its end; None at the end of the input.

        A line that was asked for, and whose reader was cancelled, is an answer to another question at a terminal: it
        is dropped there. In a pipe it is the next line.
        """
        if self.abandoned:
            await self._line("")
        return await self._line(prompt)

    async def _line(self, prompt: str) -> str | None:
        if self._pending is None:
            self._pending = self._begin(prompt)
        line = await asyncio.shield(self._pending)
        self._pending = None
        return line

    def _begin(self, prompt: str) -> asyncio.Future[str | None]:
        loop = asyncio.get_running_loop()
        pending: asyncio.Future[str | None] = loop.create_future()

        def work() -> None:
            line = self._edit(prompt) if self.edited else self._take()
            with suppress(RuntimeError):  # the loop is closed: everybody has left
                loop.call_soon_threadsafe(pending.set_result, line)

        threading.Thread(target=work, name="stdin", daemon=True).start()
        return pending

    def _edit(self, prompt: str) -> str | None:
        try:
            return input(prompt)
        except (EOFError, OSError):
            return None

    def _take(self) -> str | None:
        # Not by sys.stdin: a thread that waits in it would keep Python from ending.
        while b"\n" not in self._unread and len(self._unread) < MAX_LINE_BYTES:
            piece = os.read(sys.stdin.fileno(), READ_BYTES)
            if not piece:
                rest, self._unread = self._unread, b""
                return rest.decode(errors="replace") if rest else None
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode(errors="replace").removesuffix("\r")


@contextmanager
def stdin_lines() -> Iterator[Lines]:
    """Lines of stdin. On leaving, a terminal is as it was before."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        yield Lines(edited=False)
        return
    with suppress(ImportError):
        import readline  # noqa: F401 - input() edits lines once it is there
    before = termios.tcgetattr(sys.stdin)
    try:
        yield Lines(edited=True)
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
