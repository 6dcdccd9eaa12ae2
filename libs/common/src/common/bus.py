"""The bus: NATS JetStream in the words of this product.

`connect()` yields a `Bus`: jobs and events, on top of buckets and the connection. Exceptions of nats-py end
there: callers meet only `common.errors`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager

import nats
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from common import headers, metrics, subjects
from common.buckets import Buckets
from common.consumer import JobConsumer, Room
from common.errors import Fenced, PayloadTooLarge, QueueFull, StoreUnavailable, UndecodableMessage
from common.feed import SessionFeed, StoredEvent
from common.log import get
from common.nats_connection import WRONG_LAST_SEQUENCE, obey_cancellation, translated, without_credentials
from common.publisher import Publisher
from common.schema import DeadLetter, Event, Job, now_ms
from common.settings import BusSettings
from common.streams import JOBS, SESSIONS, Limits, consumer_config, ensure_consumer, ensure_streams

_log = get(__name__)

RECONNECT_WAIT_S = 0.25
PENDING_BYTES = 16 * 1024 * 1024
"""What may wait in this process for a NATS that is away, before publishing fails."""
QUEUE_FULL_RETRY_S = 1.0

_SUBJECT_FULL = 10077


class Bus(Buckets):
    """One connection to NATS. Made by `connect()`; safe for use by all tasks of the process."""

    def __init__(self, client: Client, publisher: Publisher, settings: BusSettings) -> None:
        super().__init__(client, publisher)
        self.limits: Limits = settings.limits()
        self.ack_wait_s = settings.ack_wait_s
        self.epoch = ""
        """Identity of the numbering of SESSIONS; set by `ensure()`."""
        self._feeds: set[SessionFeed] = set()
        self._consumers: set[JobConsumer] = set()

    # --- set-up ---------------------------------------------------------------------------------------

    async def ensure(self) -> None:
        """Make the streams and buckets that are missing.

        Raises:
            StreamConflict: if one exists with other settings.
            StoreUnavailable: if JetStream does not answer.
        """
        with translated("setting up streams"):
            self.epoch = await ensure_streams(self._js, self.limits)

    async def ensure_server(self, server: str, max_in_flight: int) -> None:
        """Make the durable consumer of a server, or bring its cluster-wide limit up to date."""
        with translated(f"setting up the consumer of {server}"):
            await ensure_consumer(self._js, consumer_config(server, max_in_flight, self.ack_wait_s))

    async def remove_server(self, server: str) -> None:
        """Remove the durable consumer of a server that left the catalog. Its waiting jobs stay in the stream."""
        with translated(f"removing the consumer of {server}"):
            try:
                await self._js.delete_consumer(JOBS, server)
            except nats.js.errors.NotFoundError:
                return

    # --- jobs -----------------------------------------------------------------------------------------

    async def enqueue_job(self, job: Job, traceparent: str | None = None) -> int:
        """Store the job; when this returns it is accepted. Returns the number of its `queued` event.

        Both are sent at once and waited for together: one round trip (docs/adr/0002). The job goes first, because
        its way is the longer one: the store has the event before a worker can have answered.

        Raises:
            QueueFull: if the session's queue on that server is at its limit; nothing is kept then.
            Fenced: if there has been a job of that id; this one is not run.
            StoreUnavailable: if the store did not confirm; the job may or may not have been kept.
        """
        queued = Event(
            job=job.id,
            session=job.session,
            attempt=0,
            type="queued",
            time_ms=now_ms(),
            data={"server": job.server, "tool": job.tool},
        )
        queued_subject = _subject_of(queued)
        queued_headers = {headers.EXPECTED_LAST_SUBJECT_SEQUENCE: "0"}
        job_headers = {headers.MSG_ID: job.id}
        if traceparent:
            job_headers[headers.TRACEPARENT] = traceparent
        with translated("accepting a job"):
            accepted = await self._publisher.send(subjects.jobs(job.server, job.session), job.encode(), job_headers)
            stored = await self._publisher.send(queued_subject, queued.encode(), queued_headers)
            try:
                seq = await stored.seq()
            except nats.js.errors.APIError as exc:
                if exc.err_code in WRONG_LAST_SEQUENCE:
                    raise Fenced(queued_subject, 0) from exc
                raise
            try:
                await accepted.seq()
            except nats.js.errors.APIError as exc:
                await self._js.purge_stream(SESSIONS, subject=queued_subject)
                if exc.err_code == _SUBJECT_FULL:
                    raise QueueFull(job.server, self.limits.queue_limit, QUEUE_FULL_RETRY_S) from exc
                raise
        metrics.JOBS_ACCEPTED.labels(job.server).inc()
        return seq

    @asynccontextmanager
    async def consume_jobs(self, server: str, room: Room) -> AsyncIterator[JobConsumer]:
        """Pull the jobs of one server while `room()` says how many more may come; iterate to get them.

        A message that cannot be read is dead-lettered here, and never reaches the caller.
        """
        consumer = JobConsumer(self.client, JOBS, server, room, self._reject_undecodable)
        self._consumers.add(consumer)
        try:
            async with consumer.running():
                yield consumer
        finally:
            self._consumers.discard(consumer)

    async def _reject_undecodable(self, msg: Msg, fault: UndecodableMessage) -> None:
        """Poison on arrival: keep the bytes as a dead letter, end the job if its id can be told, drop the message."""
        _, server, session = msg.subject.split(".")
        job_id = (msg.headers or {}).get(headers.MSG_ID, "")
        letter = DeadLetter(
            job=job_id,
            reason=fault.message,
            subject=msg.subject,
            payload=msg.data,
            deliveries=msg.metadata.num_delivered,
            time_ms=now_ms(),
        )
        await self.dead_letter(server, session, letter)
        if subjects.TOKEN.match(job_id):
            last = await self.last_event(session, job_id)
            if last is None or not last.event.terminal:
                end = Event(
                    job=job_id,
                    session=session,
                    attempt=last.event.attempt if last else 0,
                    type="result",
                    time_ms=now_ms(),
                    data={"outcome": "dead_lettered", "error": fault.as_dict()},
                )
                await self.publish_event(end, expected=last.fence if last else 0)
        await msg.term()

    async def dead_letter(self, server: str, session: str, letter: DeadLetter) -> None:
        message_headers = {headers.MSG_ID: f"{letter.job}.{letter.deliveries}"} if letter.job else None
        with translated("storing a dead letter"):
            await self._js.publish(subjects.dead(server, session), letter.encode(), headers=message_headers)
        metrics.DEAD_LETTERS.labels(server).inc()
        _log.warning("job dead-lettered", server=server, session=session, job=letter.job, reason=letter.reason)

    async def withdraw_job(self, server: str, session: str, job: str) -> None:
        """Delete a job's message from the queue, if it is still there. The caller has ended the job already."""
        async for seq, msg in self._stored(JOBS, subjects.jobs(server, session), 1):
            if (msg.headers or {}).get(headers.MSG_ID) == job:
                with translated("withdrawing a job"):
                    try:
                        await self._js.delete_msg(JOBS, seq)
                    except nats.js.errors.APIError:
                        return  # acknowledged or deleted meanwhile: gone is what was wanted
                return

    async def unfinished_jobs(self, session: str) -> list[str]:
        """Ids of the session's jobs that wait or run: a job leaves the queue after its terminal event is stored."""
        found = [
            (msg.headers or {}).get(headers.MSG_ID, "")
            async for _, msg in self._stored(JOBS, subjects.jobs_of_session(session), 1)
        ]
        return [job for job in found if subjects.TOKEN.match(job)]

    async def oldest_job_seq(self, server: str, session: str, after: int = 0) -> int | None:
        """Stream number of the oldest job of the session on the server that has not ended; None if there is none.

        Numbers up to `after` are left out: an acknowledgement takes a moment to remove its job.
        """
        with translated("reading the queue"):
            subject = subjects.jobs(server, session)
            try:
                msg = await self._js.get_msg(JOBS, seq=after + 1, subject=subject, direct=True, next=True)
            except nats.js.errors.NotFoundError:
                return None
        return msg.seq

    async def queue_depth(self, server: str) -> tuple[int, int]:
        """How many jobs of a server wait, and how many are with a worker."""
        with translated("reading the queue depth"):
            try:
                info = await self._js.consumer_info(JOBS, server)
            except nats.js.errors.NotFoundError:
                return 0, 0
        return info.num_pending or 0, info.num_ack_pending or 0

    # --- events ---------------------------------------------------------------------------------------

    async def publish_event(self, event: Event, *, expected: int, msg_id: str | None = None) -> int:
        """Store one event behind number `expected` of its job (0: the first after `queued`). Returns its number.

        With a `msg_id` a repeated publish of the same event is answered with the first one's number.

        Raises:
            Fenced: if the job's last event is another one.
            PayloadTooLarge: if the event exceeds what the store takes in one message.
            StoreUnavailable: if the store did not confirm.
        """
        subject = _subject_of(event)
        payload = event.encode()
        if len(payload) > self.max_event_bytes:
            raise PayloadTooLarge(len(payload), self.max_event_bytes)
        message_headers = {headers.EXPECTED_LAST_SUBJECT_SEQUENCE: str(expected)}
        if msg_id:
            message_headers[headers.MSG_ID] = msg_id
        with translated(f"storing event {event.type}"):
            try:
                return await (await self._publisher.send(subject, payload, message_headers)).seq()
            except nats.js.errors.APIError as exc:
                if exc.err_code in WRONG_LAST_SEQUENCE:
                    if msg_id and (seq := await self._last_stored_as(subject, msg_id)):
                        return seq
                    raise Fenced(subject, expected) from exc
                raise

    async def _last_stored_as(self, subject: str, msg_id: str) -> int | None:
        """Number of the subject's last message if it has that id: nats-server 2.15 looks at the fence before the id."""
        try:
            msg = await self._js.get_last_msg(SESSIONS, subject)
        except nats.js.errors.NotFoundError:
            return None  # past the resume window
        return msg.seq if (msg.headers or {}).get(headers.MSG_ID) == msg_id else None

    async def last_event(self, session: str, job: str) -> StoredEvent | None:
        """The newest event of a job, None if there is none (never was, or past the resume window)."""
        newest = await self._last_of(subjects.event(session, job))
        return newest or await self.queued_event(session, job)

    async def queued_event(self, session: str, job: str) -> StoredEvent | None:
        """The `queued` event of a job, None if there is none."""
        return await self._last_of(subjects.queued_event(session, job))

    async def _last_of(self, subject: str) -> StoredEvent | None:
        with translated("reading an event"):
            try:
                msg = await self._js.get_last_msg(SESSIONS, subject, direct=True)
            except nats.js.errors.NotFoundError:
                return None
        return StoredEvent(msg.seq or 0, Event.decode(msg.data or b""))

    async def replay_session(
        self, session: str, after: int, skipped: Callable[[int], None] | None = None
    ) -> AsyncGenerator[StoredEvent]:
        """The stored events of a session with numbers above `after`, in order, by batched direct gets.

        An event that cannot be read is skipped, counted and logged; `skipped` is called with its number.
        """
        async for seq, msg in self._stored(SESSIONS, subjects.events_of_session(session), after + 1):
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
    async def subscribe_session(self, session: str, after: int) -> AsyncIterator[SessionFeed]:
        """Follow a session from the event after number `after`: what was missed, then what comes, in order."""
        feed = SessionFeed(self, session, after)
        with translated("subscribing to a session"):
            # Not flushed: the feed reads the store first, over the same connection, so the server has the
            # subscription by then. (A flush that is cancelled ends nats-py 2.16's read loop for good.)
            subscription = await self.client.subscribe(subjects.live_of_session(session), cb=feed.on_message)
        self._feeds.add(feed)
        try:
            yield feed
        finally:
            self._feeds.discard(feed)
            await self._unsubscribe(subscription)

    async def stored_range(self) -> tuple[int, int]:
        """Numbers of the oldest and the newest event of all sessions; an emptied stream has oldest = newest + 1."""
        with translated("reading the event stream"):
            info = await self._js.stream_info(SESSIONS)
        return info.state.first_seq, info.state.last_seq

    # --- what the connection reports ------------------------------------------------------------------

    async def on_disconnected(self) -> None:
        if not self.client.is_draining and not self.client.is_closed:
            _log.warning("NATS connection lost, reconnecting")

    async def on_reconnected(self) -> None:
        """Core messages may have been missed, and all pull credit is gone."""
        _log.info("NATS connection is back", feeds=len(self._feeds))
        for feed in self._feeds:
            feed.resync()
        for consumer in self._consumers:
            consumer.reset()
        await self._restart_watchers()

    async def on_error(self, exc: Exception) -> None:
        if isinstance(exc, nats.errors.SlowConsumerError):
            for feed in self._feeds:
                feed.resync()
        if not isinstance(exc, asyncio.CancelledError):
            _log.warning("NATS", error=f"{type(exc).__name__}: {exc}")


def _subject_of(event: Event) -> str:
    return (subjects.queued_event if event.type == "queued" else subjects.event)(event.session, event.job)


@asynccontextmanager
async def connect(settings: BusSettings, name: str) -> AsyncIterator[Bus]:
    """Connect, retrying for as long as it takes and saying so, and make what is missing.

    On leaving, what was published is flushed and the connection is closed.

    Raises:
        StreamConflict: if a stream exists with other settings.
    """
    bus: Bus | None = None

    async def on_error(exc: Exception) -> None:
        if bus is not None:
            await bus.on_error(exc)
        else:
            obey_cancellation()
            _log.warning("cannot reach NATS, retrying", servers=without_credentials(settings.nats_url), error=str(exc))

    async def on_disconnected() -> None:
        if bus is not None:
            await bus.on_disconnected()

    async def on_reconnected() -> None:
        if bus is not None:
            await bus.on_reconnected()

    client = Client()
    try:
        await client.connect(
            servers=settings.nats_url.split(","),
            name=name,
            error_cb=on_error,
            disconnected_cb=on_disconnected,
            reconnected_cb=on_reconnected,
            allow_reconnect=True,
            max_reconnect_attempts=-1,
            reconnect_time_wait=RECONNECT_WAIT_S,  # type: ignore[arg-type]  # seconds; fractions work
            connect_timeout=2,
            ping_interval=10,
            max_outstanding_pings=2,
            pending_size=PENDING_BYTES,
        )
        obey_cancellation()
        publisher = Publisher(client)
        await publisher.open()
        bus = Bus(client, publisher, settings)
        await _ensure_when_ready(bus)
        yield bus
    finally:
        try:
            if client.is_connected:
                await client.drain()
            elif not client.is_closed:
                await client.close()
        except (nats.errors.Error, OSError) as exc:
            _log.warning("NATS connection did not close cleanly", error=f"{type(exc).__name__}: {exc}")


async def _ensure_when_ready(bus: Bus) -> None:
    """JetStream may still be electing a leader when the connection already stands."""
    while True:
        try:
            return await bus.ensure()
        except StoreUnavailable as exc:
            _log.warning("JetStream is not ready, retrying", reason=exc.message)
            await asyncio.sleep(RECONNECT_WAIT_S)
