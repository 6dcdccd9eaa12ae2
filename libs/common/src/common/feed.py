"""A session's events as one client needs them: in order, without a gap, without a repeat.

Live messages come over core NATS, which may drop them: on a reconnect, when this process is slow, when the
client is, when a cluster elects another leader. Every such case ends in the same place: the feed reads on from the
store after the last number that it delivered, and then goes live again. So the buffer is bounded, by count and by its
share of the connection's bytes, and nothing is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, NamedTuple

from nats.aio.msg import Msg

from common import headers, metrics
from common.allowance import Share
from common.errors import StoreUnavailable, UndecodableMessage
from common.log import get
from common.schema import Event

if TYPE_CHECKING:
    from common.event_log import EventLog

_log = get(__name__)

BUFFERED_EVENTS = 256
"""Live events held for a client that reads slowly; beyond it, or beyond its share of the connection's bytes, the feed
reads from the store."""
REPLAY_RETRY_S = 0.25
QUIET_MIN_S = 5.0
QUIET_MAX_S = 60.0
"""A feed that hears nothing looks whether the store has more: what is republished while a cluster's nodes come and go
may reach nobody, and the last event of a job has none behind it that would show the gap. While a job of the session is
under way it looks after the shorter time first, then ever more seldom while the store says that there is no more. With
no job under way only another client's could be missed: an idle session costs one small read a minute."""
LEADER_LAG_S = 2.0
"""How long an event seen live may be unknown to whoever answers as the stream's leader."""


class StoredEvent(NamedTuple):
    """An event and its number in SESSIONS, which grows along a session."""

    seq: int
    event: Event

    @property
    def fence(self) -> int:
        """What the job's next event is stored behind. The `queued` event is no fence: it has its own subject."""
        return 0 if self.event.type == "queued" else self.seq


class SessionFeed:
    """Iterate to get events. Made by `Bus.subscribe_session()`, for one reader."""

    def __init__(self, bus: EventLog, session: str, after: int, share: Share) -> None:
        self._bus = bus
        self._session = session
        self._share = share
        share.shed = self._shed
        self._delivered = after
        self._newest = after
        self._behind = True
        """Live messages are not buffered: the store has to be read first."""
        self._buffer = _Buffer()
        self._under_way: frozenset[str] = frozenset()
        """Jobs of which there was an event and no end yet."""
        self._look_due = False
        self._timer: asyncio.TimerHandle | None = None
        """Fires when it is time to look, or earlier: it is not set anew for each event."""
        self._wait(QUIET_MIN_S)

    async def on_message(self, msg: Msg) -> None:
        """A republished event came in. Never waits, so that NATS's own buffer stays empty."""
        fields = msg.headers or {}
        seq = int(fields[headers.SEQUENCE])
        self._newest = max(self._newest, seq)
        if self._behind:
            return
        if len(self._buffer) >= BUFFERED_EVENTS or not self._share.try_take(len(msg.data)):
            self.resync()
            return
        self._buffer.put(seq, int(fields[headers.LAST_SEQUENCE]), msg.data)

    def resync(self) -> None:
        """Live messages may have been lost: read the store before going on."""
        self._behind = True
        self._buffer.wake()

    def expect(self, seq: int) -> None:
        """Event `seq` is stored: look soon if it does not come."""
        self._newest = max(self._newest, seq)
        if seq > self._delivered:
            self._wait(QUIET_MIN_S)

    def close(self) -> None:
        """It looks no more."""
        if self._timer is not None:
            self._timer.cancel()

    async def __aiter__(self) -> AsyncGenerator[StoredEvent]:
        while True:
            if self._behind and not self._buffer:
                self._behind = False  # from here on live messages are buffered again
                async with aclosing(self._read_store(seen=self._newest)) as missed:
                    async for stored in missed:
                        self._heard(stored.event)
                        yield stored
                continue
            if self._look_due and not self._buffer:
                await self._look()
                continue
            live = await self._buffer.get()
            if live is None:
                continue
            seq, previous, data = live
            try:
                if seq <= self._delivered:
                    continue
                if previous > self._delivered:
                    self._shed()  # the job's event before this one never came
                    continue
                self._delivered = seq
                if event := self._decoded(seq, data):
                    self._heard(event)
                    yield StoredEvent(seq, event)
            finally:
                self._share.give(len(data))

    def _heard(self, event: Event) -> None:
        if event.terminal:
            self._under_way -= {event.job}
        else:
            self._under_way |= {event.job}
        self._wait(QUIET_MIN_S if self._under_way else QUIET_MAX_S)

    def _wait(self, quiet_s: float) -> None:
        """Look into the store if nothing is heard for so long."""
        self._quiet_s = quiet_s
        self._look_at = asyncio.get_running_loop().time() + quiet_s
        if self._timer is None or self._timer.when() > self._look_at:
            self.close()
            self._set_timer()

    def _set_timer(self) -> None:
        self._timer = asyncio.get_running_loop().call_at(self._look_at, self._on_time)

    def _on_time(self) -> None:
        if asyncio.get_running_loop().time() < self._look_at:
            self._set_timer()
            return
        self._timer = None
        self._look_due = True
        self._buffer.wake()

    async def _look(self) -> None:
        more = await self._store_has_more()
        self._look_due = False
        if more:
            self._behind = True
        self._wait(self._quiet_s if more is None else min(self._quiet_s * 2, QUIET_MAX_S))

    async def _store_has_more(self) -> bool | None:
        """None if the store is away: nothing is known then, and that is when live messages are lost."""
        try:
            return await self._bus.newest_event_seq(self._session) > self._delivered
        except StoreUnavailable as exc:
            _log.info("a quiet feed could not look into the store", session=self._session, reason=exc.message)
            return None

    def _decoded(self, seq: int, data: bytes) -> Event | None:
        try:
            return Event.decode(data)
        except UndecodableMessage as exc:
            metrics.EVENTS_UNDECODABLE.inc()
            _log.warning("event skipped", session=self._session, seq=seq, reason=exc.message)
            return None

    async def _read_store(self, seen: int) -> AsyncGenerator[StoredEvent]:
        """Everything after the last delivered event, at least to the session's newest as the stream's leader has it.

        A replica that answers may be behind, so it is asked again until it has that one. Number `seen` was seen live:
        if even the leader does not know it any more, it is waited for a moment and then taken to have been deleted.
        Waits out a store that is away.
        """
        lag_until = asyncio.get_running_loop().time() + LEADER_LAG_S
        while True:
            try:
                newest = await self._bus.newest_event_seq(self._session)
                if max(newest, seen) <= self._delivered:
                    return
                replay = self._bus.replay_session(self._session, self._delivered, self._skip, self._share)
                async with aclosing(replay) as missed:
                    async for stored in missed:
                        self._delivered = stored.seq
                        yield stored
                late = asyncio.get_running_loop().time() > lag_until
                if self._delivered >= newest and (self._delivered >= seen or late):
                    return
            except StoreUnavailable as exc:
                lag_until = asyncio.get_running_loop().time() + LEADER_LAG_S
                _log.info("replay waits for the store", session=self._session, reason=exc.message)
            await asyncio.sleep(REPLAY_RETRY_S)

    def _skip(self, seq: int) -> None:
        self._delivered = seq

    def _shed(self) -> None:
        """Hold nothing that the store has too. Only the reader does this, so it is not waiting for a message."""
        self._behind = True
        for _, _, data in self._buffer.clear():
            self._share.give(len(data))


class _Live(NamedTuple):
    """A republished event, and the number of the one before it on the same subject."""

    seq: int
    previous: int
    data: bytes


class _Buffer:
    """Live events on their way to the one reader. An `asyncio.Queue` would cost each idle session 2.5 KB."""

    __slots__ = ("_events", "_reader")

    def __init__(self) -> None:
        self._events: list[_Live] = []
        self._reader: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._events)

    def put(self, seq: int, previous: int, data: bytes) -> None:
        self._events.append(_Live(seq, previous, data))
        self.wake()

    def wake(self) -> None:
        """Have a reader that waits look again."""
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def get(self) -> _Live | None:
        """The oldest; None if it was woken for something else."""
        if not self._events:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        return self._events.pop(0) if self._events else None

    def clear(self) -> list[_Live]:
        cleared, self._events = self._events, []
        return cleared
