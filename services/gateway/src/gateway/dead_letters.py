"""Dead letters: looked at, made a job again, removed. A tenant has its own; an operator has all."""

from __future__ import annotations

import base64
from collections.abc import Collection
from typing import Any, Final

from common import metrics
from common.acceptance import accept_once
from common.attempt_history import within
from common.bus import Bus
from common.consumer import read_job
from common.dead_letters import StoredLetter, facts_of
from common.errors import DeadLetterUnreadable, PayloadTooLarge, UndecodableMessage, UnknownDeadLetter
from common.feed import StoredEvent
from common.log import get, trace_of
from common.schema import DeadLetter, Job, now_ms
from gateway.catalog_view import CatalogView
from gateway.sessions import Sessions
from gateway.store import Store

_log = get(__name__)

DEFAULT_PAGE: Final = 50
MAX_PAGE: Final = 500
PURGED_AT_ONCE: Final = 1_000
"""Letters that one purge removes; its answer says where the next one goes on."""
REASON_CHARS: Final = 300
"""What a list shows of a reason."""
HISTORY_BYTES: Final = 65_536
"""What the attempts before take in the message of a redriven job."""
REDRIVEN_HEADERS_BYTES: Final = 1_024
"""Kept free in it: less than in the first one, whose message was smaller by the history."""


class DeadLetters:
    """The dead letters as each tenant may see them."""

    def __init__(
        self,
        store: Store,
        catalog: CatalogView,
        sessions: Sessions,
        default_timeout_ms: int,
        operators: Collection[str],
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._sessions = sessions
        self._default_timeout_ms = default_timeout_ms
        self._operators = frozenset(operators)

    async def list(self, tenant: str, *, server: str | None, before: str | None, limit: int) -> dict[str, Any]:
        """Newest first. A page may be short, also empty, and go on all the same: `before` says where."""

        def summary(stored: StoredLetter) -> dict[str, Any] | None:
            return _summary(stored) if self._may(tenant, stored.letter) else None

        page = await self._store.bus.letters(summary, limit=limit, server=server, before=_number(before))
        return {"letters": page.items, "before": _name(page.before)}

    async def show(self, tenant: str, letter: str) -> dict[str, Any]:
        """
        Raises:
            UnknownDeadLetter: if there is none (any more), or it is another tenant's.
        """
        return _described(await self._require(self._store.bus, tenant, letter))

    async def redrive(self, tenant: str, letter: str) -> dict[str, Any]:
        """Accept the letter's job once more, as a new job of its session whose attempts go on counting.

        The new job's id is made of the letter: whoever asks twice, of whichever gateways, has one job. The letter is
        removed when the job is accepted.

        Raises:
            UnknownDeadLetter: as `show()`, unless the letter became a job that is still known: that is the answer then.
            DeadLetterUnreadable: if there is no job in it.
            UnknownServer: if its server is not in the catalog (any more).
            UnknownSession: if its session is another tenant's by now.
            PayloadTooLarge: if the job with its history exceeds what one message can hold.
            QueueFull: if the session has as many jobs on that server as it may.
            StoreUnavailable: if the store did not confirm.
        """
        bus = self._store.bus
        job_id = f"redrive-{await bus.letters_identity()}-{letter}"
        try:
            stored = await self._require(bus, tenant, letter)
        except UnknownDeadLetter:
            queued = await self._redriven_before(bus, tenant, job_id)
            if queued is None:
                raise
            return _redriven(letter, queued.event.session, job_id, queued.seq, queued.event.data.get("redrive_of"))
        job = self._again(bus, stored, job_id)
        await self._sessions.keep(job.tenant, job.session)
        seq = await accept_once(bus, job, stored.letter.traceparent or None)
        if await bus.delete_letter(stored.number):
            metrics.DEAD_LETTERS_REDRIVEN.labels(job.server).inc()
            _log.info("dead letter redriven", redriven_as=job_id, by=tenant, **facts_of(stored))
        return _redriven(letter, job.session, job_id, seq, job.redrive_of)

    async def delete(self, tenant: str, letter: str) -> dict[str, Any]:
        """
        Raises:
            UnknownDeadLetter: as `show()`.
        """
        bus = self._store.bus
        stored = await self._require(bus, tenant, letter)
        if not await self._remove(bus, stored, tenant):
            raise UnknownDeadLetter(letter)
        return {"letter": letter}

    async def purge(
        self, tenant: str, *, server: str | None, older_than_s: float, before: str | None
    ) -> dict[str, Any]:
        """Remove the tenant's letters, newest first; those of one server, or of all. `before` as in `list()`."""
        bus = self._store.bus
        latest_ms = now_ms() - int(older_than_s * 1000)

        def old_enough(stored: StoredLetter) -> StoredLetter | None:
            letter = stored.letter
            if not self._may(tenant, letter) or letter.time_ms > latest_ms:
                return None
            # Without what may be large: a thousand of them are held here.
            return StoredLetter(stored.number, letter.model_copy(update={"payload": b"", "error": {}, "stderr": ""}))

        page = await bus.letters(old_enough, limit=PURGED_AT_ONCE, server=server, before=_number(before))
        removed = [await self._remove(bus, stored, tenant) for stored in page.items]
        return {"purged": sum(removed), "before": _name(page.before)}

    async def _remove(self, bus: Bus, stored: StoredLetter, tenant: str) -> bool:
        if not await bus.delete_letter(stored.number):
            return False
        metrics.DEAD_LETTERS_PURGED.labels(stored.letter.server).inc()
        _log.info("dead letter purged", by=tenant, **facts_of(stored))
        return True

    async def _require(self, bus: Bus, tenant: str, letter: str) -> StoredLetter:
        found = await bus.letter(int(letter))
        if found is None or not self._may(tenant, found):
            raise UnknownDeadLetter(letter)
        return StoredLetter(int(letter), found)

    def _may(self, tenant: str, letter: DeadLetter) -> bool:
        return letter.tenant == tenant or tenant in self._operators

    def _again(self, bus: Bus, stored: StoredLetter, job_id: str) -> Job:
        letter = stored.letter
        try:
            job = _job_in(letter)
        except UndecodableMessage as exc:
            raise DeadLetterUnreadable(str(stored.number), exc.message) from exc
        if job.kind == "chat":
            # As another job it would not find its steps, and make its calls again.
            raise DeadLetterUnreadable(str(stored.number), "a chat turn is not run again: send its question again")
        spec = self._catalog.server(job.server)
        now = now_ms()
        again = job.model_copy(
            update={
                "id": job_id,
                "created_ms": now,
                "start_by_ms": now + int(spec.queue_s(job.tool) * 1000),
                "timeout_ms": spec.timeout_ms(job.tool, self._default_timeout_ms),
                "heartbeat_ms": spec.heartbeat_ms(job.tool),
                "redrive_of": job.id,
                "attempts_before": [],
            }
        )
        limit = bus.max_payload - REDRIVEN_HEADERS_BYTES
        room = min(limit - len(again.encode()), HISTORY_BYTES)
        again = again.model_copy(update={"attempts_before": within(letter.attempts, room)})
        size = len(again.encode())
        if size > limit:
            raise PayloadTooLarge(size, limit)
        return again

    async def _redriven_before(self, bus: Bus, tenant: str, job_id: str) -> StoredEvent | None:
        queued = await bus.queued_anywhere(job_id)
        if queued is None:
            return None
        owner = await bus.tenant_of(queued.event.session)
        return queued if owner == tenant or tenant in self._operators else None


def _job_in(letter: DeadLetter) -> Job:
    """
    Raises:
        UndecodableMessage: if there is none that could be accepted.
    """
    if len(letter.payload) < letter.size:
        raise UndecodableMessage(f"its message of {letter.size} bytes was too large to be kept")
    return read_job(letter.subject, letter.payload)


def _summary(stored: StoredLetter) -> dict[str, Any]:
    letter = stored.letter
    return {
        "letter": str(stored.number),
        "time_ms": letter.time_ms,
        "tenant": letter.tenant,
        "server": letter.server,
        "tool": letter.tool,
        "session": letter.session,
        "job": letter.job,
        "attempts": len(letter.attempts),
        "reason": letter.reason[:REASON_CHARS],
    }


def _described(stored: StoredLetter) -> dict[str, Any]:
    letter = stored.letter
    found = _summary(stored) | {
        "reason": letter.reason,
        "error": letter.error,
        "stderr": letter.stderr,
        "image_digest": letter.image_digest,
        "trace": trace_of(letter.traceparent),
        "traceparent": letter.traceparent,
        "attempts": letter.attempts,
        "redrive_of": letter.redrive_of,
        "deliveries": letter.deliveries,
        "size": letter.size,
    }
    try:
        job = _job_in(letter)
    except UndecodableMessage:
        return found | {"payload": base64.b64encode(letter.payload).decode()}
    return found | {"arguments": job.arguments, "meta": job.meta}


def _redriven(letter: str, session: str, job: str, seq: int, redrive_of: str | None) -> dict[str, Any]:
    return {"letter": letter, "session": session, "job": job, "seq": seq, "redrive_of": redrive_of}


def _number(letter: str | None) -> int | None:
    return None if letter is None else int(letter)


def _name(number: int | None) -> str | None:
    return None if number is None else str(number)
