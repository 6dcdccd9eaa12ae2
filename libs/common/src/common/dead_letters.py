"""Dead letters: what is kept of a job that the system gave up on, and how it is read and removed.

The order is the contract: the letter is stored first, then the job's terminal event, then its message leaves the
queue. Whoever dies in between leaves a message that comes again, and the same letter is not stored twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import nats.js.errors
from nats.aio.msg import Msg
from nats.js.api import RawStreamMsg

from common import headers, metrics, subjects
from common.attempt_history import KEPT, TOLD, attempts_of, fitted, newest_digest, newest_stderr
from common.consumer import read_job
from common.errors import StoreUnavailable, UndecodableMessage
from common.job_line import JobFacts, tell_job_ended
from common.job_queue import JobQueue, job_of
from common.log import get, trace_of
from common.nats_connection import translated
from common.schema import AttemptRecord, DeadLetter, Event, Job, SessionRecord, now_ms
from common.streams import DEAD_LETTERS, SESSIONS_BUCKET

_log = get(__name__)

LETTER_HEADERS_BYTES: Final = 512
"""Less than is kept free in a job's message, so that a letter has room beside the largest job."""
STRETCH: Final = 256
"""Numbers that are looked through at a time on the way from new letters to old ones."""
STRETCHES: Final = 40
"""Most that one page looks through; it may end with fewer letters than it could hold, and say where to go on."""

T = TypeVar("T")


@dataclass(frozen=True)
class GivenUp:
    """A message of the queue that nobody will run (again), and why."""

    subject: str
    payload: bytes
    error: dict[str, Any]
    """That of the job's `result` event; its `cause`, if any, is what the last attempt failed with."""
    seq: int
    """Its number in the queue."""
    job: str = ""
    """As its header tells; empty where that is none."""
    deliveries: int = 0
    traceparent: str | None = None


@dataclass(frozen=True)
class StoredLetter:
    number: int
    letter: DeadLetter


@dataclass(frozen=True)
class Page(Generic[T]):
    items: list[T]
    """Newest first."""
    before: int | None
    """Below this number there may be more; None where there is nothing more."""


class DeadLetterLog(JobQueue):
    """A connection with the stream DEAD_LETTERS."""

    # --- writing --------------------------------------------------------------------------------------

    async def give_up(self, message: GivenUp) -> None:
        """Store the letter, then the job's end, unless it has ended. The caller takes the message out of the queue.

        Raises:
            Fenced: if the job has another event by now: somebody runs it after all.
            StoreUnavailable: if the store did not confirm.
        """
        letter = await self.dead_letter(message)
        session = letter.session
        if not subjects.TOKEN.match(message.job):
            return
        last = await self.last_event(session, message.job)
        if last is not None and last.event.terminal:
            return
        end = Event(
            job=message.job,
            session=session,
            attempt=last.event.attempt if last else 0,
            type="result",
            time_ms=now_ms(),
            data={"outcome": "dead_lettered", "error": message.error},
        )
        await self.publish_event(end, expected=last.fence if last else 0, msg_id=f"{message.job}.given-up")
        facts = JobFacts(
            session, message.job, letter.server, letter.tool, letter.tenant, traceparent=message.traceparent
        )
        tell_job_ended(facts, end.attempt, "dead_lettered", message.error.get("type"))

    async def reject(self, msg: Msg, fault: UndecodableMessage) -> None:
        """Poison on arrival: keep the bytes as a dead letter, end the job if its id can be told, drop the message."""
        fields = msg.headers or {}
        await self.give_up(
            GivenUp(
                subject=msg.subject,
                payload=msg.data,
                error=fault.as_dict(),
                seq=msg.metadata.sequence.stream,
                job=fields.get(headers.MSG_ID, ""),
                deliveries=msg.metadata.num_delivered,
                traceparent=fields.get(headers.TRACEPARENT),
            )
        )
        await msg.term()

    async def bury(self, msg: RawStreamMsg, error: dict[str, Any]) -> None:
        """As `give_up`, for a message that still stands in the queue. It is left there."""
        await self.give_up(
            GivenUp(
                subject=msg.subject or "",
                payload=msg.data or b"",
                error=error,
                seq=msg.seq or 0,
                job=job_of(msg),
                traceparent=(msg.headers or {}).get(headers.TRACEPARENT),
            )
        )

    async def dead_letter(self, message: GivenUp) -> DeadLetter:
        """Keep what is known of a job whose end the caller stores next. One letter, however often it is asked for."""
        letter, msg_id = await self._letter_of(message)
        letter = fitted(letter, self.max_payload - LETTER_HEADERS_BYTES)
        with translated("storing a dead letter"):
            stored = await self._js.publish(
                subjects.dead(letter.server, letter.session), letter.encode(), headers={headers.MSG_ID: msg_id}
            )
        if not stored.duplicate:
            metrics.DEAD_LETTERS.labels(letter.server).inc()
            _log.warning("job dead-lettered", **facts_of(StoredLetter(stored.seq, letter)))
        return letter

    async def _letter_of(self, message: GivenUp) -> tuple[DeadLetter, str]:
        """The letter, and the id by which the store knows it again."""
        _, server, session = message.subject.split(".")
        job: Job | None = None
        try:
            job = read_job(message.subject, message.payload)
        except UndecodableMessage:
            # Its job's id is anybody's word, so it may not hide another message's letter.
            digest = hashlib.sha256(message.subject.encode() + b" " + message.payload).hexdigest()
            msg_id = f"message.{message.seq}.{digest[:32]}"
        time_ms = now_ms()
        attempts = list(job.attempts_before) if job else []
        attempts += await self._attempts(session, job.id if job else message.job, message.error.get("cause"), time_ms)
        if job is not None:
            msg_id = f"{job.id}.{attempts[-1]['attempt'] if attempts else 0}"
        letter = DeadLetter(
            job=job.id if job else message.job,
            tenant=job.tenant if job else await self.tenant_of(session),
            server=server,
            session=session,
            tool=job.tool if job else "",
            redrive_of=job.redrive_of if job else "",
            reason=str(message.error.get("message", "")),
            error=message.error,
            stderr=newest_stderr(attempts),
            image_digest=newest_digest(attempts),
            traceparent=message.traceparent or "",
            attempts=attempts[-KEPT:],
            subject=message.subject,
            payload=message.payload,
            size=len(message.payload),
            deliveries=message.deliveries,
            time_ms=time_ms,
        )
        return letter, msg_id

    async def _attempts(
        self, session: str, job: str, cause: dict[str, Any] | None, given_up_ms: int
    ) -> list[AttemptRecord]:
        if not subjects.TOKEN.match(job):
            return []
        told = [stored.event async for stored in self.job_events(session, job) if stored.event.type in TOLD]
        return attempts_of(told, cause=cause, given_up_ms=given_up_ms)

    async def tenant_of(self, session: str) -> str:
        """Whose a session is; empty where that is not known (any more)."""
        record = await self.get(SESSIONS_BUCKET, session)
        try:
            return SessionRecord.decode(record.value).tenant if record.value is not None else ""
        except UndecodableMessage:
            return ""

    async def delete_letter(self, number: int) -> bool:
        """False if there is none (any more).

        Raises:
            StoreUnavailable: if the store did not confirm.
        """
        with translated("deleting a dead letter"):
            try:
                return await self._js.delete_msg(DEAD_LETTERS, number)
            except nats.js.errors.APIError as exc:
                if await self.letter(number) is None:
                    return False
                raise StoreUnavailable(f"deleting a dead letter: {exc.description}", err_code=exc.err_code) from exc

    # --- reading --------------------------------------------------------------------------------------

    async def letter(self, number: int) -> DeadLetter | None:
        """None if there is none (any more)."""
        with translated("reading a dead letter"):
            try:
                msg = await self._js.get_msg(DEAD_LETTERS, number, direct=self.one_replica)
            except nats.js.errors.NotFoundError:
                return None
        return _read(number, msg.subject or "", msg.data or b"")

    async def letters(
        self,
        keep: Callable[[StoredLetter], T | None],
        *,
        limit: int,
        server: str | None = None,
        before: int | None = None,
    ) -> Page[T]:
        """What `keep` makes of each letter that it wants, newest first; `before` goes on where a page ended.

        One page looks through a bounded number of letters, whoever's they are, so it may be short of `limit`.
        """
        with translated("reading the dead letters"):
            state = (await self._js.stream_info(DEAD_LETTERS)).state
        subject = subjects.ALL_DEAD if server is None else subjects.dead_of_server(server)
        upper = state.last_seq + 1 if before is None else min(before, state.last_seq + 1)
        items: list[T] = []
        for _ in range(STRETCHES):
            lower = max(state.first_seq, upper - STRETCH)
            if lower >= upper:
                return Page(items, None)
            for number, item in reversed(await self._stretch(subject, lower, upper, keep)):
                items.append(item)
                if len(items) == limit:
                    return Page(items, number)
            upper = lower
        return Page(items, upper if upper > state.first_seq else None)

    async def _stretch(
        self, subject: str, lower: int, upper: int, keep: Callable[[StoredLetter], T | None]
    ) -> list[tuple[int, T]]:
        """Only what is kept stays in memory: letters hold whole messages."""
        found: list[tuple[int, T]] = []
        async for stored in self._letters_from(subject, lower):
            if stored.number >= upper:
                break
            item = keep(stored)
            if item is not None:
                found.append((stored.number, item))
        return found

    async def _letters_from(self, subject: str, first: int) -> AsyncGenerator[StoredLetter]:
        async for number, msg in self._stored(DEAD_LETTERS, subject, first):
            yield StoredLetter(number, _read(number, (msg.headers or {})[headers.SUBJECT], msg.data))

    async def letters_identity(self) -> str:
        """Changes when the stream is made anew, whose numbers start again then."""
        with translated("reading the dead letters"):
            info = await self._js.stream_info(DEAD_LETTERS)
        return hashlib.sha256(str(info.created).encode()).hexdigest()[:12]


def facts_of(stored: StoredLetter) -> dict[str, Any]:
    """What the one log line tells of a letter that was stored, redriven or purged."""
    letter = stored.letter
    facts = {
        "letter": stored.number,
        "server": letter.server,
        "session": letter.session,
        "job": letter.job,
        "attempts": len(letter.attempts),
        "reason": letter.reason,
    }
    if letter.traceparent:
        facts["trace"] = trace_of(letter.traceparent)
    return facts


def _read(number: int, subject: str, raw: bytes) -> DeadLetter:
    """A letter that this version cannot read is one of its own: its bytes can be looked at and deleted."""
    try:
        return DeadLetter.decode(raw)
    except UndecodableMessage as exc:
        _log.warning("dead letter cannot be read", letter=number, reason=exc.message)
        _, server, session = subject.split(".")
        return DeadLetter(
            job="",
            tenant="",
            server=server,
            session=session,
            tool="",
            redrive_of="",
            reason=exc.message,
            error=exc.as_dict(),
            stderr="",
            image_digest="",
            traceparent="",
            attempts=[],
            subject=subject,
            payload=raw,
            size=len(raw),
            deliveries=0,
            time_ms=0,
        )
