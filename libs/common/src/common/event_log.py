"""The stored events of all jobs: written behind a fence, read back, followed live.

Every event of a job but four kinds goes to one subject, each behind the one before: so of two writers that both
believe they own a job the store accepts one (docs/adr/0002). `queued`, `decision`, the waiting job's position and
`cancelling` have subjects of their own beside it: they come from elsewhere, at any time, and must not get in the way of
the fence.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import ExitStack, aclosing, asynccontextmanager
from datetime import datetime
from typing import Any

import nats.js.errors
from nats.aio.client import Client
from nats.js.api import RawStreamMsg

from common import headers, metrics, subjects
from common.allowance import Share, own_share
from common.errors import Fenced, PayloadTooLarge, UndecodableMessage
from common.feed import SessionFeed, StoredEvent
from common.feeds import Feeds
from common.log import get
from common.nats_connection import REFUSED_BEHIND_ANOTHER, REQUEST_TIMEOUT_S, translated
from common.object_store import ObjectStore
from common.publisher import Outgoing, Publisher
from common.schema import Event, now_ms
from common.shared_read import SharedRead
from common.streams import SESSIONS, Limits

_log = get(__name__)


LIVE_PENDING_EVENTS = 1_024
"""Live messages of one feed that may wait in nats-py for the feed to look at them, which it does at once. What comes
beyond is dropped there and reported (SlowConsumerError), and the feeds read the store."""
LIVE_PENDING_EVENTS_OF_FULL_SIZE = 2
"""The same in bytes, counted in messages of the largest size that the server takes."""


class EventLog(ObjectStore):
    """A connection with the stream SESSIONS."""

    def __init__(self, client: Client, publisher: Publisher, limits: Limits) -> None:
        super().__init__(client, publisher, limits)
        self._feeds = Feeds()
        self._range = SharedRead(self._read_range)

    # --- writing --------------------------------------------------------------------------------------

    async def publish_event(self, event: Event, *, expected: int, msg_id: str | None = None) -> int:
        """Store one event behind number `expected` of its job (0: the first after `queued`). Returns its number.

        With a `msg_id` a repeated publish of the same event is answered with the first one's number.

        Events with a subject of their own (`queued`, `decision`, `cancelling`, a waiting job's progress) stand behind
        the last one there instead.

        Raises:
            Fenced: if the job's last event is another one.
            PayloadTooLarge: if the event exceeds what the store takes in one message.
            StoreUnavailable: if the store did not confirm.
        """
        message_headers = {headers.EXPECTED_LAST_SUBJECT_SEQUENCE: str(expected)}
        if msg_id:
            message_headers[headers.MSG_ID] = msg_id
        return await self._store([self._outgoing(event, message_headers)], expected, msg_id)

    async def publish_events(self, events: Sequence[Event], *, expected: int, msg_id: str) -> int:
        """Store events of one job, all of them or none. Returns the number of the last, which gets the `msg_id`.

        Raises:
            Fenced, PayloadTooLarge, StoreUnavailable: as `publish_event()`.
        """
        messages = [self._outgoing(event, {}) for event in events]
        messages[0].headers[headers.EXPECTED_LAST_SUBJECT_SEQUENCE] = str(expected)
        messages[-1].headers[headers.MSG_ID] = msg_id
        return await self._store(messages, expected, msg_id)

    def _outgoing(self, event: Event, message_headers: dict[str, str]) -> Outgoing:
        payload = event.encode()
        if len(payload) > self.max_event_bytes:
            raise PayloadTooLarge(len(payload), self.max_event_bytes)
        return Outgoing(_subject_of(event), payload, message_headers)

    async def _store(self, messages: list[Outgoing], expected: int, last_id: str | None) -> int:
        subject = messages[-1].subject
        with translated("storing events"):
            try:
                return await (await self._publisher.send_batch(messages)).seq()
            except nats.js.errors.APIError as exc:
                if exc.err_code not in REFUSED_BEHIND_ANOTHER:
                    raise
                if last_id and (seq := await self._last_stored_as(SESSIONS, subject, last_id)):
                    return seq
                raise Fenced(subject, expected) from exc

    async def request_cancel(self, session: str, job: str, attempt: int) -> bool:
        """Keep that a client wants a running job stopped; its worker hears of it live. False if that is kept already.

        It is stored, so that the cancel outlives the worker that was to obey it.

        Raises:
            StoreUnavailable: if the store did not confirm.
        """
        event = Event(job=job, session=session, attempt=attempt, type="cancelling", time_ms=now_ms(), data={})
        try:
            await self.publish_event(event, expected=0)
        except Fenced:
            return False
        return True

    async def publish_position(self, session: str, job: str, data: dict[str, Any], last_seq: int) -> int:
        """Tell how far a waiting job has come, behind the report with number `last_seq`. Returns its number.

        It may come after the job's start or end. The store could fence it by those (another subject's last number), but
        while such a publish is under way a cluster refuses what the worker stores there.

        Raises:
            Fenced: if the job's last report is another one.
            StoreUnavailable: if the store did not confirm.
        """
        event = Event(job=job, session=session, attempt=0, type="progress", time_ms=now_ms(), data=data)
        return await self.publish_event(event, expected=last_seq)

    # --- reading --------------------------------------------------------------------------------------

    async def last_event(self, session: str, job: str) -> StoredEvent | None:
        """The newest event of a job, None if there is none (never was, or past the resume window).

        That a cancel was asked for, or how far the job has come in its queue, does not count.
        """
        newest = await self._last_of(subjects.event(session, job))
        return newest or await self.queued_event(session, job)

    async def queued_event(self, session: str, job: str) -> StoredEvent | None:
        """The `queued` event of a job, None if there is none."""
        return await self._last_of(subjects.queued_event(session, job))

    async def queued_anywhere(self, job: str) -> StoredEvent | None:
        """The `queued` event of a job whose session is not known, None if there is none."""
        return await self._last_of(subjects.queued_event("*", job))

    async def cancel_requested(self, session: str, job: str) -> bool:
        """Has a client asked for the end of a job that had started?"""
        return await self._last_of(subjects.cancel_event(session, job)) is not None

    async def decision(self, session: str, job: str) -> bool | None:
        """May a call that a chat turn asks leave for run? None while nobody has decided."""
        decided = await self._last_of(subjects.decision_event(session, job))
        return decided.event.data["approved"] is True if decided else None

    async def last_position(self, session: str, job: str) -> StoredEvent | None:
        """What was told last of how far a waiting job has come."""
        return await self._last_of(subjects.waiting_event(session, job))

    async def newest_event_seq(self, session: str) -> int:
        """Number of a session's newest event, 0 if it has none."""
        newest = await self._last_message(subjects.events_of_session(session))
        return newest.seq or 0 if newest else 0

    async def _last_of(self, subject: str) -> StoredEvent | None:
        msg = await self._last_message(subject)
        return StoredEvent(msg.seq or 0, Event.decode(msg.data or b"")) if msg else None

    async def _last_message(self, subject: str) -> RawStreamMsg | None:
        """As the stream's leader has it: any other replica may be behind, and what is decided by it would be wrong."""

        async def read() -> RawStreamMsg | None:
            try:
                return await self._reads.get_last_msg(SESSIONS, subject, direct=self.one_replica)
            except nats.js.errors.NotFoundError:
                return None

        return await self.patiently("reading an event", read)

    async def job_events(self, session: str, job: str) -> AsyncGenerator[StoredEvent]:
        """What was stored of a job from its first `started` on, in order."""
        async for seq, msg in self._stored(SESSIONS, subjects.event(session, job), 1):
            try:
                yield StoredEvent(seq, Event.decode(msg.data))
            except UndecodableMessage as exc:
                _log.warning("event skipped", session=session, job=job, seq=seq, reason=exc.message)

    async def started_event(self, session: str, job: str, attempt: int) -> Event | None:
        """The `started` event of one attempt."""
        found = None
        async for stored in self.job_events(session, job):
            if stored.event.type == "started" and stored.event.attempt == attempt:
                found = stored.event
        return found

    async def queued_events(self, after: int) -> AsyncGenerator[StoredEvent]:
        """The `queued` events of all sessions with numbers above `after`, in order."""
        async for seq, msg in self._stored(SESSIONS, subjects.ALL_QUEUED_EVENTS, after + 1):
            try:
                yield StoredEvent(seq, Event.decode(msg.data))
            except UndecodableMessage as exc:
                _log.warning("event skipped", seq=seq, reason=exc.message)

    async def jobs_with_events(self, jobs: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
        """Which of these (session, job) have an event beyond `queued`; 1,024 jobs at most. A replica may be behind."""
        found = await self._last_stored(SESSIONS, [subjects.event(session, job) for session, job in jobs])
        return {subjects.job_of_event((msg.headers or {})[headers.SUBJECT]) for _, msg in found}

    async def replay_session(
        self,
        session: str,
        after: int,
        skipped: Callable[[int], None] | None = None,
        share: Share | None = None,
    ) -> AsyncGenerator[StoredEvent]:
        """The stored events of a session with numbers above `after`, in order, by batched direct gets.

        An event that cannot be read is skipped, counted and logged; `skipped` is called with its number. A batch is
        held by `share`, each event until the next one is asked for.
        """
        events = self._stored(SESSIONS, subjects.events_of_session(session), after + 1, share)
        async with aclosing(events) as messages:
            async for seq, msg in messages:
                try:
                    event = Event.decode(msg.data)
                except UndecodableMessage as exc:
                    metrics.EVENTS_UNDECODABLE.inc()
                    _log.warning("event skipped", session=session, seq=seq, reason=exc.message)
                    if skipped is not None:
                        skipped(seq)
                    continue
                metrics.EVENTS_REPLAYED.inc()
                yield StoredEvent(seq, event)

    @asynccontextmanager
    async def subscribe_session(
        self, session: str, after: int, share: Share | None = None
    ) -> AsyncIterator[SessionFeed]:
        """Follow a session from the event after number `after`: what was missed, then what comes, in order.

        What the feed holds is `share`'s, without one an allowance of its own.
        """
        with ExitStack() as stack:
            feed = SessionFeed(self, session, after, share or stack.enter_context(own_share()))
            stack.callback(feed.close)
            with translated("subscribing to a session"):
                # Not flushed: the feed reads the store first, over the same connection, so the server has the
                # subscription by then. (A flush that is cancelled ends nats-py 2.16's read loop for good.)
                subscription = await self.client.subscribe(
                    subjects.live_of_session(session),
                    cb=feed.on_message,
                    pending_msgs_limit=LIVE_PENDING_EVENTS,
                    pending_bytes_limit=LIVE_PENDING_EVENTS_OF_FULL_SIZE * self.max_payload,
                )
            try:
                with self._feeds.holding(session, feed):
                    yield feed
            finally:
                await self._unsubscribe(subscription)

    async def oldest_event_ms(self) -> int:
        """When the oldest event of all sessions was stored: of what is older nothing is known."""
        with translated("reading the event stream"):
            answer = await self.client.request(subjects.stream_info(SESSIONS), timeout=REQUEST_TIMEOUT_S)
        # nats-py leaves this field out.
        first = datetime.fromisoformat(json.loads(answer.data)["state"]["first_ts"])
        return int(first.timestamp() * 1000)

    async def stored_range(self) -> tuple[int, int]:
        """Numbers of the oldest and the newest event of all sessions; an emptied stream has oldest = newest + 1.

        Who asks while an answer is on its way gets the next one, together with all others who do: thousands of clients
        that come back at once ask the store a few times.
        """
        return await self._range.get()

    async def _read_range(self) -> tuple[int, int]:
        info = await self.patiently("reading the event stream", lambda: self._reads.stream_info(SESSIONS))
        return info.state.first_seq, info.state.last_seq


def _subject_of(event: Event) -> str:
    if event.type == "queued":
        return subjects.queued_event(event.session, event.job)
    if event.type == "decision":
        return subjects.decision_event(event.session, event.job)
    if event.type == "cancelling":
        return subjects.cancel_event(event.session, event.job)
    if event.attempt == 0 and event.type == "progress":
        return subjects.waiting_event(event.session, event.job)
    return subjects.event(event.session, event.job)
