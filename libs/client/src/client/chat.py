"""Chat turns: sent, and read together with the calls that they make."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any

from client.event import Event, Position
from client.reader import Reader
from client.readers import Readers


class TurnReader(Reader):
    """Reads the whole session, and wants of it a turn and the calls that its `step` events name."""

    def __init__(self, position: Position, *, behind: bool = False) -> None:
        super().__init__(None, position, behind=behind)
        self._jobs: set[str] = set()

    def begin(self, turn: str) -> None:
        """Until now nothing may be read, only queued."""
        self.until = turn
        self._jobs.add(turn)

    def wants(self, event: Event) -> bool:
        if event.type == "step" and event.job == self.until:
            self._jobs.update(call["job"] for call in event.data["calls"])
        return event.job in self._jobs


class Turns:
    """Of one session, which owns the readers and moves `position` on."""

    def __init__(
        self,
        ask: Callable[..., Awaitable[dict[str, Any]]],
        readers: Readers,
        position: Callable[[], Position],
    ) -> None:
        self._ask = ask
        self._readers = readers
        self._position = position

    async def send(self, session: str, content: str, idempotency_key: str) -> TurnReader:
        """A reader of a new turn; of one from before where the key stands for it."""
        # It listens before the turn is sent: the first events may come before the answer.
        start = self._position()
        gaps = self._readers.gaps
        with ExitStack() as unread:
            reader = TurnReader(start)
            self._readers.add(reader)
            unread.callback(self._readers.remove, reader)
            answer = await self._ask("chat/send", session=session, content=content, idempotencyKey=idempotency_key)
            if answer["seq"] > start.seq and self._readers.gaps == gaps:
                unread.pop_all()
                reader.begin(answer["job"])
                return reader
        return await self.replay(answer["job"], answer["seq"] - 1)

    async def replay(self, turn: str, after: int) -> TurnReader:
        """A reader of what the store has of a turn behind a number, and of what follows."""
        reader = TurnReader(Position(self._position().epoch, after), behind=True)
        reader.begin(turn)
        self._readers.add(reader)
        return reader
