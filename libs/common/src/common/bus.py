"""The bus: NATS JetStream in the words of this product.

`connect()` yields a `Bus`. Exceptions of nats-py end here: callers meet only `common.errors`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import nats
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext
from nats.js.kv import KeyValue

from common import headers, metrics, subjects
from common.consumer import JobConsumer, Room
from common.errors import (
    Fenced,
    PayloadTooLarge,
    QueueFull,
    StoreUnavailable,
    UndecodableMessage,
)
from common.feed import SessionFeed, StoredEvent
from common.log import get
from common.publisher import Publisher
from common.schema import DeadLetter, Event, Job, now_ms
from common.settings import BusSettings
from common.streams import JOBS, SESSIONS, Limits, bucket_stream, consumer_config, ensure_consumer, ensure_streams

_log = get(__name__)

REQUEST_TIMEOUT_S = 5.0
RECONNECT_WAIT_S = 0.25
PENDING_BYTES = 16 * 1024 * 1024
"""What may wait in this process for a NATS that is away, before publishing fails."""
REPLAY_BATCH = 256
HEADER_BYTES = 4096
REPLAY_BATCH_BYTES = 4 * 1024 * 1024
"""A batch ends at either bound, so that a thousand clients that resume at once fit in memory."""
QUEUE_FULL_RETRY_S = 1.0

_SUBJECT_FULL = 10077
_WRONG_LAST_SEQUENCE = (10071, 10164)


@dataclass(frozen=True)
class Entry:
    """One key of a bucket: `value` is None where it was deleted or has lapsed, `revision` is 0 where it never was."""

    key: str
    value: bytes | None
    revision: int


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    """Turn what nats-py raises into what our callers know."""
    try:
        yield
    except nats.js.errors.APIError as exc:
        raise StoreUnavailable(f"{doing}: JetStream refused: {exc.description or exc}", err_code=exc.err_code) from exc
    except (nats.errors.Error, TimeoutError, OSError) as exc:
        raise StoreUnavailable(f"{doing}: NATS does not answer ({type(exc).__name__})") from exc


class Bus:
    """One connection to NATS. Made by `connect()`; safe for use by all tasks of the process."""

    def __init__(self, client: Client, publisher: Publisher, settings: BusSettings) -> None:
        self.client = client
        self._publisher = publisher
        self.limits: Limits = settings.limits()
        self.ack_wait_s = settings.ack_wait_s
        self.epoch = ""
        """Identity of the numbering of SESSIONS; set by `ensure()`."""
        self._js: JetStreamContext = client.jetstream(timeout=REQUEST_TIMEOUT_S)
        self._buckets: dict[str, KeyValue] = {}
        self._feeds: set[SessionFeed] = set()
        self._consumers: set[JobConsumer] = set()
        self._watchers: set[KeyValue.KeyWatcher] = set()

    @property
    def connected(self) -> bool:
        return bool(self.client.is_connected)

    @property
    def max_payload(self) -> int:
        """Bytes that one message may have, headers included; the server says so at connect."""
        return int(self.client.max_payload)

    @property
    def max_event_bytes(self) -> int:
        """What one message may hold, less room for its headers."""
        return int(self.client.max_payload) - HEADER_BYTES

    # --- set-up ---------------------------------------------------------------------------------------

    async def ensure(self) -> None:
        """Make the streams and buckets that are missing.

        Raises:
            StreamConflict: if one exists with other settings.
            StoreUnavailable: if JetStream does not answer.
        """
        with _translated("setting up streams"):
            self.epoch = await ensure_streams(self._js, self.limits)

    async def ensure_server(self, server: str, max_in_flight: int) -> None:
        """Make the durable consumer of a server, or bring its cluster-wide limit up to date."""
        with _translated(f"setting up the consumer of {server}"):
            await ensure_consumer(self._js, consumer_config(server, max_in_flight, self.ack_wait_s))

    async def remove_server(self, server: str) -> None:
        """Remove the durable consumer of a server that left the catalog. Its waiting jobs stay in the stream."""
        with _translated(f"removing the consumer of {server}"):
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
        with _translated("accepting a job"):
            accepted = await self._publisher.send(subjects.jobs(job.server, job.session), job.encode(), job_headers)
            stored = await self._publisher.send(queued_subject, queued.encode(), queued_headers)
            try:
                seq = await stored.seq()
            except nats.js.errors.APIError as exc:
                if exc.err_code in _WRONG_LAST_SEQUENCE:
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
        with _translated("storing a dead letter"):
            await self._js.publish(subjects.dead(server, session), letter.encode(), headers=message_headers)
        metrics.DEAD_LETTERS.labels(server).inc()
        _log.warning("job dead-lettered", server=server, session=session, job=letter.job, reason=letter.reason)

    async def withdraw_job(self, server: str, session: str, job: str) -> None:
        """Delete a job's message from the queue, if it is still there. The caller has ended the job already."""
        async for seq, msg in self._stored(JOBS, subjects.jobs(server, session), 1):
            if (msg.headers or {}).get(headers.MSG_ID) == job:
                with _translated("withdrawing a job"):
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
        with _translated("reading the queue"):
            subject = subjects.jobs(server, session)
            try:
                msg = await self._js.get_msg(JOBS, seq=after + 1, subject=subject, direct=True, next=True)
            except nats.js.errors.NotFoundError:
                return None
        return msg.seq

    async def queue_depth(self, server: str) -> tuple[int, int]:
        """How many jobs of a server wait, and how many are with a worker."""
        with _translated("reading the queue depth"):
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
        with _translated(f"storing event {event.type}"):
            try:
                ack = await self._js.publish(subject, payload, headers=message_headers)
            except nats.js.errors.APIError as exc:
                if exc.err_code in _WRONG_LAST_SEQUENCE:
                    if msg_id and (seq := await self._last_stored_as(subject, msg_id)):
                        return seq
                    raise Fenced(subject, expected) from exc
                raise
        return ack.seq

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
        with _translated("reading an event"):
            try:
                msg = await self._js.get_last_msg(SESSIONS, subject, direct=True)
            except nats.js.errors.NotFoundError:
                return None
        assert msg.seq is not None
        assert msg.data is not None
        return StoredEvent(msg.seq, Event.decode(msg.data))

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
        with _translated("subscribing to a session"):
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
        with _translated("reading the event stream"):
            info = await self._js.stream_info(SESSIONS)
        return info.state.first_seq, info.state.last_seq

    async def _stored(self, stream: str, subject: str, first: int) -> AsyncGenerator[tuple[int, Msg]]:
        """Every stored message of a subject from number `first` on, with its number."""
        more = True
        while more:
            batch, more = await self._direct_get_batch(stream, subject, first)
            for seq, msg in batch:
                yield seq, msg
                first = seq + 1

    async def _direct_get_batch(self, stream: str, subject: str, first: int) -> tuple[list[tuple[int, Msg]], bool]:
        """One batch of stored messages from number `first` on, without a consumer (NATS ADR-31); are there more?"""
        request = {
            "seq": first,
            "next_by_subj": subject,
            "batch": REPLAY_BATCH,
            "max_bytes": REPLAY_BATCH_BYTES,
        }
        inbox = self.client.new_inbox()
        found: list[tuple[int, Msg]] = []
        ended: asyncio.Future[dict[str, str]] = asyncio.get_running_loop().create_future()

        async def on_message(msg: Msg) -> None:
            fields = msg.headers or {}
            if headers.STATUS not in fields:
                found.append((int(fields[headers.SEQUENCE]), msg))
            elif not ended.done():
                ended.set_result(fields)

        with _translated(f"reading {stream}"):
            # A callback: `next_msg` would start a task for each message.
            subscription = await self.client.subscribe(inbox, cb=on_message)
            try:
                await self.client.publish(subjects.direct_get(stream), json.dumps(request).encode(), reply=inbox)
                async with asyncio.timeout(REQUEST_TIMEOUT_S):
                    end = await ended
            finally:
                await self._unsubscribe(subscription)
        if end[headers.STATUS] not in ("204", "404"):
            raise StoreUnavailable(f"reading {stream}: {end[headers.STATUS]} {end.get(headers.DESCRIPTION, '')}")
        return found, bool(found) and int(end.get(headers.NUM_PENDING, 0)) > 0

    # --- key-value buckets ----------------------------------------------------------------------------

    async def bucket(self, name: str) -> KeyValue:
        if name not in self._buckets:
            with _translated(f"opening bucket {name}"):
                self._buckets[name] = await self._js.key_value(name)
        return self._buckets[name]

    async def get(self, bucket: str, key: str) -> Entry:
        kv = await self.bucket(bucket)
        with _translated(f"reading {bucket}/{key}"):
            try:
                entry = await kv.get(key)
            except nats.js.errors.KeyNotFoundError as exc:
                # A deleted key still has a revision, which a later create must name.
                deleted = getattr(exc, "entry", None)
                return Entry(key, None, deleted.revision if deleted else 0)
        # A key whose TTL ran out comes back as a marker with an empty value.
        return Entry(key, entry.value or None, entry.revision or 0)

    async def put(self, bucket: str, key: str, value: bytes) -> None:
        kv = await self.bucket(bucket)
        with _translated(f"writing {bucket}/{key}"):
            await kv.put(key, value)

    async def purge(self, bucket: str, key: str, remember_s: float) -> None:
        """Delete a key; that it was there is remembered for `remember_s` seconds."""
        kv = await self.bucket(bucket)
        with _translated(f"deleting {bucket}/{key}"):
            await kv.purge(key, msg_ttl=remember_s)

    async def delete(self, bucket: str, key: str) -> None:
        kv = await self.bucket(bucket)
        with _translated(f"deleting {bucket}/{key}"):
            await kv.delete(key)

    async def replace(self, bucket: str, key: str, value: bytes, revision: int, ttl_s: float | None = None) -> int:
        """Write a key whose last revision is `revision` (0: it never was). Returns the new revision.

        Raises:
            Fenced: if somebody else wrote it meanwhile.
        """
        subject = subjects.bucket_key(bucket, key)
        message_headers = {headers.EXPECTED_LAST_SUBJECT_SEQUENCE: str(revision)}
        with _translated(f"writing {bucket}/{key}"):
            try:
                ack = await self._js.publish(subject, value, headers=message_headers, msg_ttl=ttl_s)
            except nats.js.errors.APIError as exc:
                if exc.err_code in _WRONG_LAST_SEQUENCE:
                    raise Fenced(subject, revision) from exc
                raise
        return ack.seq

    async def watch(self, bucket: str) -> AsyncGenerator[Entry | None]:
        """Every key of a bucket, then None once, then every change for as long as the caller iterates.

        After a lost connection every key comes again, those that were deleted meanwhile among them: nats-py
        would take up to 20 s to find out that its consumer is gone.

        Raises:
            StoreUnavailable: if the watch cannot begin. Once begun, it waits for the store.
        """
        kv = await self.bucket(bucket)
        with _translated(f"watching {bucket}"):
            watcher = await kv.watchall()
        begun = False
        newest = 0
        while True:
            self._watchers.add(watcher)
            try:
                if not begun:
                    # Read, because nats-py's own sign that all is told comes too early where the store is busy.
                    async for seq, msg in self._stored(bucket_stream(bucket), subjects.keys_of_bucket(bucket), 1):
                        newest = seq
                        key = (msg.headers or {})[headers.SUBJECT].removeprefix(subjects.bucket_key(bucket, ""))
                        yield Entry(key, msg.data or None, seq)
                    begun = True
                    yield None
                async for update in watcher:  # ends when `on_reconnected` stops the watcher
                    if update is not None and (update.revision or 0) > newest:
                        gone = update.operation in ("DEL", "PURGE") or not update.value
                        yield Entry(update.key, None if gone else update.value, update.revision or 0)
            finally:
                await self._stop_watching(watcher)
            newest = 0
            watcher = await self._watch_again(kv, bucket)

    async def _watch_again(self, kv: KeyValue, bucket: str) -> KeyValue.KeyWatcher:
        while True:
            try:
                with _translated(f"watching {bucket}"):
                    return await kv.watchall()
            except StoreUnavailable as exc:
                _log.info("watch waits for the store", bucket=bucket, reason=exc.message)
            await asyncio.sleep(RECONNECT_WAIT_S)

    async def _stop_watching(self, watcher: KeyValue.KeyWatcher) -> None:
        self._watchers.discard(watcher)
        try:
            await watcher.stop()  # type: ignore[no-untyped-call]
        except nats.errors.Error:
            return  # stopped before, or the connection closed under it

    # --- core messages --------------------------------------------------------------------------------

    async def publish(self, subject: str, payload: bytes = b"") -> None:
        with _translated(f"publishing to {subject}"):
            await self.client.publish(subject, payload)

    async def request(
        self, subject: str, payload: bytes, timeout_s: float, message_headers: dict[str, str] | None = None
    ) -> bytes | None:
        """Ask whoever listens. None if nobody does.

        Raises:
            StoreUnavailable: if somebody listens but did not answer in time, or NATS is away.
        """
        with _translated(f"asking {subject}"):
            try:
                reply = await self.client.request(subject, payload, timeout=timeout_s, headers=message_headers)
            except nats.errors.NoRespondersError:
                return None
        return reply.data

    async def gather(self, subject: str, wait_s: float) -> list[dict[str, Any]]:
        """All JSON answers to a request that come within `wait_s` seconds."""
        inbox = self.client.new_inbox()
        answers: list[dict[str, Any]] = []
        with _translated(f"asking {subject}"):
            subscription = await self.client.subscribe(inbox)
            try:
                await self.client.publish(subject, b"", reply=inbox)
                async with asyncio.timeout(wait_s):
                    while True:
                        msg = await subscription.next_msg(timeout=None)
                        if (msg.headers or {}).get(headers.STATUS) == "503":
                            break
                        answers.append(json.loads(msg.data))
            except TimeoutError:
                return answers
            finally:
                await self._unsubscribe(subscription)
        return answers

    async def _unsubscribe(self, subscription: Subscription) -> None:
        if not self.client.is_closed:
            with _translated("unsubscribing"):
                try:
                    await subscription.unsubscribe()
                except nats.errors.BadSubscriptionError:
                    return  # the connection closed under it

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
        for watcher in list(self._watchers):
            await self._stop_watching(watcher)

    async def on_error(self, exc: Exception) -> None:
        if isinstance(exc, nats.errors.SlowConsumerError):
            for feed in self._feeds:
                feed.resync()
        if not isinstance(exc, asyncio.CancelledError):
            _log.warning("NATS", error=f"{type(exc).__name__}: {exc}")


def _subject_of(event: Event) -> str:
    spell = subjects.queued_event if event.type == "queued" else subjects.event
    return spell(event.session, event.job)


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
            _obey_cancellation()
            _log.warning("cannot reach NATS, retrying", servers=_without_credentials(settings), error=str(exc))

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
        _obey_cancellation()
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


def _obey_cancellation() -> None:
    """CPython 3.11's `wait_for`, by which nats-py connects, loses a cancellation that comes as an attempt ends."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _without_credentials(settings: BusSettings) -> str:
    return ",".join(url.rsplit("@", 1)[-1] for url in settings.nats_url.split(","))
