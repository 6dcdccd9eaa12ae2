"""Sessions: whose they are, and from which event on a client follows one."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

from common import subjects
from common.buckets import Entry
from common.bus import Bus
from common.chat_errors import ToolNotAllowed
from common.errors import Fenced, UnknownSession
from common.feed import LEADER_LAG_S
from common.schema import SessionRecord, now_ms
from common.streams import SESSIONS_BUCKET
from gateway.import_errors import SessionTaken
from gateway.store import Store

TRUSTED_FOR_S: Final = 1.0
"""How long a session that was found is not looked up again: a busy one costs one read a second instead of one a
call. One that was closed on another gateway takes jobs here for that long; they run, and nobody hears of them."""
RENEWALS_IN_TTL: Final = 4
"""How often a session in use is written again while its record would lapse."""
OPENING_AT_ONCE: Final = 64
"""Sessions that are opened or joined at the same time; others wait for their turn. When a gateway dies, its clients
come back all at once: together they would wait for the store longer than its timeouts, and come back again."""
MAX_KNOWN: Final = 10_000
LAG_RETRY_S: Final = 0.1


@dataclass(frozen=True)
class Position:
    """The last event that a client has: its number, and the epoch of the numbering."""

    epoch: str
    seq: int


@dataclass(frozen=True)
class Joined:
    """Where a client stands in a session after opening it."""

    session: str
    epoch: str
    seq: int
    """Events with higher numbers follow."""
    recovered: bool
    """Everything after the client's position follows. False where part of it is gone, or nothing was asked for."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Known:
    """A session's record as this gateway last saw it; moments of the loop's clock."""

    record: SessionRecord
    trusted_until: float
    renew_at: float


class Sessions:
    """The session records of all tenants. One that is in use stays known; others lapse after `session_ttl_s`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[tuple[str, str], _Known] = {}
        """By tenant and session."""
        self._room = asyncio.Semaphore(OPENING_AT_ONCE)

    async def open(
        self,
        tenant: str,
        *,
        record: bool = False,
        conversation_ttl_s: float | None = None,
        allow: list[str] | None = None,
    ) -> Joined:
        """A new session of the tenant. With `record` direct tool calls become messages of its conversation; with
        `allow` nothing else can be called in it."""
        bus = self._store.bus
        session = subjects.new_session_id()
        opened = SessionRecord(
            tenant=tenant,
            created_ms=now_ms(),
            record=record,
            conversation_ttl_s=conversation_ttl_s,
            allow=allow,
        )
        async with self._room:
            await bus.put(SESSIONS_BUCKET, session, opened.encode())
            self._remember(bus, tenant, session, opened)
            return await _joined(bus, session, None)

    async def join(self, tenant: str, session: str, position: Position | None) -> Joined:
        """Come back to a session.

        Raises:
            UnknownSession: if there is none, or it is another tenant's: the answer does not tell which.
        """
        bus = self._store.bus
        async with self._room:
            await self._renew(bus, tenant, session)
            return await _joined(bus, session, position)

    async def require(self, tenant: str, session: str) -> SessionRecord:
        """
        Raises:
            UnknownSession: as `join()`.
        """
        bus = self._store.bus
        now = asyncio.get_running_loop().time()
        known = self._known.get((tenant, session))
        if known is None or known.renew_at <= now:
            return await self._renew(bus, tenant, session)
        if known.trusted_until <= now:
            _, record = await _look_up(bus, tenant, session)
            self._remember(bus, tenant, session, record, known.renew_at)
        return known.record

    async def require_allowed(self, tenant: str, session: str, server: str, tool: str | None) -> SessionRecord:
        """
        Raises:
            UnknownSession: as `join()`.
            ToolNotAllowed: if that tool may not be called in it; without one, if not everything of the server may.
        """
        record = await self.require(tenant, session)
        if not record.allows(server, tool):
            raise ToolNotAllowed(server, tool, record.allow or [])
        return record

    async def adopt(self, tenant: str, session: str, *, conversation_ttl_s: float | None) -> SessionRecord:
        """A session of the tenant whose id was given elsewhere; made where there is none.

        Raises:
            SessionTaken: if it is another tenant's.
        """
        with suppress(UnknownSession):
            return await self.require(tenant, session)
        try:
            return await self.keep(tenant, session, conversation_ttl_s=conversation_ttl_s)
        except UnknownSession as exc:
            raise SessionTaken(session, tenant) from exc

    async def keep(self, tenant: str, session: str, *, conversation_ttl_s: float | None = None) -> SessionRecord:
        """Have the session known, also where it had lapsed or was closed.

        Raises:
            UnknownSession: if it is another tenant's.
        """
        bus = self._store.bus
        entry = await bus.get(SESSIONS_BUCKET, session)
        if entry.value is None:
            record = SessionRecord(tenant=tenant, created_ms=now_ms(), conversation_ttl_s=conversation_ttl_s)
            with suppress(Fenced):  # then somebody else did the same, which is looked at next
                await bus.replace(SESSIONS_BUCKET, session, record.encode(), entry.revision)
        return await self._renew(bus, tenant, session)

    async def close(self, tenant: str, session: str) -> None:
        """Tell the workers to free what the session holds, remove its conversation and its objects, and forget it."""
        bus = self._store.bus
        await bus.publish(subjects.close(session))
        await self._store.conversations.delete(session)
        await bus.purge_objects(session)
        await bus.delete(SESSIONS_BUCKET, session)
        self._known.pop((tenant, session), None)

    async def _renew(self, bus: Bus, tenant: str, session: str) -> SessionRecord:
        """Have the record live on for at least three quarters of `session_ttl_s`: an older one is written again."""
        entry, record = await _look_up(bus, tenant, session)
        assert entry.value is not None
        age_s = (datetime.now(UTC) - entry.written).total_seconds() if entry.written else math.inf
        renewal_s = bus.limits.session_ttl_s / RENEWALS_IN_TTL
        if 0 <= age_s < renewal_s:
            now = asyncio.get_running_loop().time()
            self._remember(bus, tenant, session, record, renew_at=now + renewal_s - age_s)
            return record
        try:
            await bus.replace(SESSIONS_BUCKET, session, entry.value, entry.revision)
        except Fenced:
            # Somebody else renewed it just now, which serves as well; or closed it.
            await _look_up(bus, tenant, session)
        self._remember(bus, tenant, session, record)
        return record

    def _remember(
        self, bus: Bus, tenant: str, session: str, record: SessionRecord, renew_at: float | None = None
    ) -> None:
        now = asyncio.get_running_loop().time()
        renewal_s = bus.limits.session_ttl_s / RENEWALS_IN_TTL
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known[tenant, session] = _Known(
            record=record,
            trusted_until=now + min(TRUSTED_FOR_S, renewal_s),
            renew_at=now + renewal_s if renew_at is None else renew_at,
        )


async def _look_up(bus: Bus, tenant: str, session: str) -> tuple[Entry, SessionRecord]:
    entry = await bus.get(SESSIONS_BUCKET, session)
    if entry.value is None:
        raise UnknownSession(session)
    record = SessionRecord.decode(entry.value)
    if record.tenant != tenant:
        raise UnknownSession(session)
    return entry, record


async def _joined(bus: Bus, session: str, position: Position | None) -> Joined:
    oldest, newest = await bus.stored_range()
    if position is not None and position.epoch == bus.epoch:
        # Who answers as the stream's leader may not have heard yet that it is one no more, and be behind the client.
        lag_until = asyncio.get_running_loop().time() + LEADER_LAG_S
        while position.seq > newest and asyncio.get_running_loop().time() < lag_until:
            await asyncio.sleep(LAG_RETRY_S)
            oldest, newest = await bus.stored_range()
    if position is None:
        return Joined(session, bus.epoch, newest, recovered=False)
    # The stream drops its oldest events first, whichever session they are of. So nothing of this session is
    # missing where nothing at all is missing; beyond that the store does not tell, and we do not guess.
    if position.epoch == bus.epoch and oldest - 1 <= position.seq <= newest:
        return Joined(session, bus.epoch, position.seq, recovered=True)
    return Joined(session, bus.epoch, max(oldest - 1, 0), recovered=False)
