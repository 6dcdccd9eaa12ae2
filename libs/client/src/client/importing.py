"""`orchestrator conversations import`: the conversations of a dump, sent in batches, and what came of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, Final

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from client.command import NOT_SUCCEEDED, SUCCEEDED
from client.conversation import Conversations, Imported
from client.errors import NoAnswer, Refused
from client.old_dump import BadLine, OldConversation, OtherKey, read
from client.patience import Patience
from client.terminal import complain, console

BATCH_BYTES: Final = 500_000
"""Of the messages of one request; half of what a gateway takes by default. Less where one takes less."""
BATCH_MESSAGES: Final = 500
WAITS_FOR_STORE_S: Final = 60.0
OF_THE_LINE: Final = {
    "conversation_differs",
    "conversation_moved",
    "conversation_unreadable",
    "session_taken",
    "payload_too_large",
    "parse_error",
    "invalid_params",
    "internal_error",
}
"""Refusals that say nothing of the other lines; any other one ends the import."""


@dataclass
class Counts:
    added: int = 0
    """Messages that were not there before."""
    present: int = 0
    conversations: int = 0
    """To which something was added."""
    skipped: int = 0
    faults: int = 0

    def __str__(self) -> str:
        said = f"imported {self.added:,} messages of {self.conversations:,} conversations"
        if self.present:
            said += f"; {self.present:,} messages were there already"
        return f"{said}; skipped {self.skipped:,} other keys; faults {self.faults:,}"


class ImportView:
    """A line on the terminal that says how far it is, and what is told besides; made by `import_view`."""

    def __init__(self) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=console(stderr=True),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._visible = self._progress.console.is_terminal
        self._task = self._progress.add_task("", total=None)

    def close(self) -> None:
        """Take the line away."""
        if self._visible:  # elsewhere rich would end a line that was never begun
            self._progress.stop()

    def at(self, line: int, counts: Counts) -> None:
        if self._visible:
            self._progress.update(self._task, description=f"line {line:,}: {counts}")
            self._progress.start()

    def fault(self, line: int, reason: str) -> None:
        sentence = f"line {line}: {reason}"
        if self._visible:
            self._progress.console.print(f"orchestrator: {sentence}", soft_wrap=True)
        else:
            complain(sentence)


@contextmanager
def import_view() -> Iterator[ImportView]:
    view = ImportView()
    try:
        yield view
    finally:
        view.close()


class Import:
    """One run. Without `conversations` the file is read and counted only."""

    def __init__(self, conversations: Conversations | None, tenant: str, ttl_s: float | None, view: ImportView) -> None:
        self._conversations = conversations
        self._tenant = tenant
        self._ttl_s = ttl_s
        self._view = view
        self._counts = Counts()
        self._batch_bytes = BATCH_BYTES

    async def run(self, source: BinaryIO) -> int:
        """The exit code. However it ends, the last line on stdout says what was done.

        Raises:
            Refused: if the gateway takes nothing of it, or no more.
            ConnectionLost, NoAnswer
        """
        items = read(source)
        try:
            # In a thread: a pipe may be silent for long, and the connection wants to be looked after.
            while (item := await asyncio.to_thread(next, items, None)) is not None:
                match item:
                    case OldConversation():
                        await self._take(item)
                    case OtherKey():
                        self._counts.skipped += 1
                    case BadLine(line, reason):
                        self._fault(line, reason)
                self._view.at(item.line, self._counts)
        finally:
            self._view.close()
            print(f"dry run: would have {self._counts}" if self._conversations is None else self._counts, flush=True)
        return NOT_SUCCEEDED if self._counts.faults else SUCCEEDED

    def _fault(self, line: int, reason: str) -> None:
        self._counts.faults += 1
        self._view.fault(line, reason)

    async def _take(self, found: OldConversation) -> None:
        if self._conversations is None:
            self._counts.added += len(found.messages)
            self._counts.conversations += bool(found.messages)
            return
        added = after = 0
        try:
            while after < len(found.messages):
                count = self._fitting(found.sizes, after)
                try:
                    told = await self._send(self._conversations, found, after, count)
                except Refused as exc:
                    if exc.type != "payload_too_large" or count == 1:
                        raise
                    self._batch_bytes = sum(found.sizes[after : after + count]) // 2
                    continue
                after += count
                added += told.added
                self._counts.added += told.added
                self._counts.present += count - told.added
        except Refused as exc:
            if exc.type not in OF_THE_LINE:
                raise
            before = f" (messages 1 to {after} are imported)" if after else ""
            self._fault(found.line, f"session {found.session}: {exc}{before}")
        finally:
            self._counts.conversations += bool(added)

    def _fitting(self, sizes: list[int], after: int) -> int:
        """How many of the messages behind number `after` go into one request: one at least."""
        total = 0
        for count, size in enumerate(sizes[after : after + BATCH_MESSAGES]):
            total += size + 1
            if count and total > self._batch_bytes:
                return count
        return min(BATCH_MESSAGES, len(sizes) - after)

    async def _send(self, to: Conversations, found: OldConversation, after: int, count: int) -> Imported:
        """Again while the store is away: what it has taken all the same is not added twice."""
        patience = Patience(WAITS_FOR_STORE_S)
        while True:
            try:
                return await to.import_messages(
                    found.session,
                    found.messages[after : after + count],
                    tenant=self._tenant,
                    after=after,
                    ttl_s=self._ttl_s or found.ttl_s,
                )
            except (Refused, NoAnswer) as exc:
                if isinstance(exc, Refused) and exc.type != "store_unavailable":
                    raise
                delay_s = patience.failed()
                if delay_s is None:
                    raise
            await asyncio.sleep(delay_s)
