"""The bus: NATS JetStream in the words of this product.

`connect()` yields a `Bus`: jobs, on top of dead letters, events, buckets and the connection. Exceptions of nats-py end
there: callers meet only `common.errors`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple
from urllib.parse import urlsplit

import nats
import nats.errors
import nats.js.errors
from nats.aio.client import Client

from common import headers, metrics, subjects, tracing
from common.chat_errors import TurnInProgress
from common.consumer import JobConsumer, Room
from common.dead_letters import DeadLetterLog
from common.errors import QueueFull, StoreUnavailable
from common.job_queue import job_of
from common.job_spans import job_attributes
from common.log import get
from common.nats_connection import (
    REFUSED_BEHIND_ANOTHER,
    STORE_FULL,
    WRONG_LAST_SEQUENCE,
    obey_cancellation,
    translated,
    without_credentials,
)
from common.publisher import CONNECTION_FAULTS, Acknowledgement, Publisher
from common.schema import Event, Job, now_ms
from common.settings import BusSettings
from common.streams import JOBS, SESSIONS, consumer_config, ensure_consumer, ensure_streams

_log = get(__name__)

RECONNECT_WAIT_S = 0.25
PENDING_BYTES = 16 * 1024 * 1024
"""What may wait in this process for a NATS that is away, before publishing fails."""
QUEUE_FULL_RETRY_S = 1.0
LEAVE_TIMEOUT_S = 5.0
"""For a connection to hand over what is still in it; nats-py's own limit is 30 s."""


class Accepted(NamedTuple):
    """What the store answered to a job."""

    seq: int
    """Number of its `queued` event."""
    job_seq: int
    """Its number in the queue."""


class Bus(DeadLetterLog):
    """One connection to NATS. Made by `connect()`; safe for use by all tasks of the process."""

    def __init__(self, client: Client, publisher: Publisher, settings: BusSettings) -> None:
        super().__init__(client, publisher, settings.limits())
        self.ack_wait_s = settings.ack_wait_s
        self.epoch = ""
        """Identity of the numbering of SESSIONS; set by `ensure()`."""
        self._consumers: set[JobConsumer] = set()
        self._back = asyncio.Event()

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

    async def enqueue_job(self, job: Job, traceparent: str | None = None) -> Accepted:
        """Store the job; when this returns it is accepted.

        Both are sent at once and waited for together: one round trip (docs/adr/0002). The job goes first, because
        its way is the longer one: the store has the event before a worker can have answered. A job that was stored
        less than two minutes ago is not stored again, so this may be repeated after StoreUnavailable.

        Raises:
            QueueFull: if the session's queue on that server is at its limit; nothing is kept then.
            TurnInProgress: if it is a chat turn, and another one of the session waits or runs; nothing is kept then.
            StoreUnavailable: if the store did not confirm; the job may or may not have been kept.
        """
        data = {"server": job.server, "tool": job.tool}
        if job.redrive_of:
            data["redrive_of"] = job.redrive_of
        queued = Event(job=job.id, session=job.session, attempt=0, type="queued", time_ms=now_ms(), data=data)
        job_headers = {headers.MSG_ID: job.id}
        if job.kind == "chat":
            job_headers[headers.EXPECTED_LAST_SUBJECT_SEQUENCE] = "0"
        sending = tracing.span(f"send jobs.{job.server}", "producer", traceparent, job_attributes(job, "send"))
        with sending, translated("accepting a job"):
            if sending.traceparent:
                job_headers[headers.TRACEPARENT] = sending.traceparent
            try:
                accepted = await self._store_job(job, queued, job_headers)
            except TimeoutError:
                accepted = await self._store_job(job, queued, job_headers)  # what of it was stored is stored once
        metrics.JOBS_ACCEPTED.labels(job.server).inc()
        self._feeds.expect(job.session, accepted.seq)
        return accepted

    async def _store_job(self, job: Job, queued: Event, job_headers: dict[str, str]) -> Accepted:
        queued_headers = {headers.EXPECTED_LAST_SUBJECT_SEQUENCE: "0"}
        accepted = await self._publisher.send(subjects.jobs(job.server, job.session), job.encode(), job_headers)
        stored = await self._publisher.send(subjects.queued_event(job.session, job.id), queued.encode(), queued_headers)
        seq = await self._seq_of_queued(stored, job)
        try:
            job_seq = await accepted.seq()
        except nats.js.errors.APIError as exc:
            refused = exc.err_code in REFUSED_BEHIND_ANOTHER
            other = await self._next_in_queue(subjects.jobs(job.server, job.session), 0) if refused else None
            if other is not None and job_of(other) == job.id:
                return Accepted(seq, other.seq or 0)  # a try whose answer was lost
            await self._take_back(seq)
            if refused:
                raise TurnInProgress(job_of(other) if other else "") from exc
            if exc.err_code == STORE_FULL:
                raise QueueFull(job.server, self.limits.queue_limit, QUEUE_FULL_RETRY_S) from exc
            raise
        return Accepted(seq, job_seq)

    async def _take_back(self, seq: int) -> None:
        """Delete a refused job's `queued` event. Not by a purge, for whoever may purge may empty the stream."""
        try:
            await self._js.delete_msg(SESSIONS, seq)
        except nats.js.errors.APIError:
            return  # another try to accept the job was refused as well, and faster

    async def _seq_of_queued(self, stored: Acknowledgement, job: Job) -> int:
        try:
            return await stored.seq()
        except nats.js.errors.APIError as exc:
            if exc.err_code not in WRONG_LAST_SEQUENCE:
                raise
        # Another try to accept this job was faster, or its answer was lost.
        known = await self.queued_event(job.session, job.id)
        if known is None:
            raise StoreUnavailable("accepting a job: another try to accept it was just refused")
        return known.seq

    @asynccontextmanager
    async def consume_jobs(self, server: str, room: Room) -> AsyncIterator[JobConsumer]:
        """Pull the jobs of one server while `room()` says how many more may come; iterate to get them.

        A message that cannot be read is dead-lettered here, and never reaches the caller.
        """
        consumer = JobConsumer(self.client, JOBS, server, room, self.reject)
        self._consumers.add(consumer)
        try:
            async with consumer.running():
                yield consumer
        finally:
            self._consumers.discard(consumer)

    async def withdraw_job(self, server: str, session: str, job: str) -> None:
        """Delete a job's message from the queue, if it is still there. The caller has ended the job already."""
        async for msg in self.jobs_in_queue(subjects.jobs(server, session)):
            if job_of(msg) == job:
                await self.delete_job(msg.seq or 0)
                return

    async def delete_job(self, seq: int) -> None:
        """Take a message out of the queue; that it is gone already is as good."""
        with translated("withdrawing a job"):
            try:
                await self._js.delete_msg(JOBS, seq)
            except nats.js.errors.APIError:
                return  # acknowledged or deleted meanwhile

    # --- what the connection reports ------------------------------------------------------------------

    async def on_disconnected(self) -> None:
        if not self.client.is_draining and not self.client.is_closed:
            _log.warning("NATS connection lost, reconnecting")

    async def on_reconnected(self) -> None:
        """Core messages may have been missed, and all pull credit is gone."""
        _log.info("NATS connection is back", feeds=len(self._feeds))
        self._back.set()
        self._back = asyncio.Event()
        self._feeds.resync()
        for consumer in self._consumers:
            consumer.reset()
        await self._restart_watchers()

    async def reconnection(self) -> None:
        """Returns after the next lost connection, when there is one again: core messages were missed meanwhile."""
        await self._back.wait()

    async def on_error(self, exc: Exception) -> None:
        if isinstance(exc, nats.errors.SlowConsumerError):
            self._feeds.resync()
        if not isinstance(exc, asyncio.CancelledError):
            _log.warning("NATS", error=f"{type(exc).__name__}: {exc}")


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
            user=settings.nats_user or None,
            password=settings.nats_password.get_secret_value() or None,
            inbox_prefix=subjects.inbox(user_of(settings)),
            name=name,
            error_cb=on_error,
            disconnected_cb=on_disconnected,
            reconnected_cb=on_reconnected,
            allow_reconnect=True,
            max_reconnect_attempts=-1,
            reconnect_time_wait=RECONNECT_WAIT_S,  # type: ignore[arg-type]  # seconds; fractions work
            connect_timeout=2,
            ping_interval=3,  # a node that hangs is left after three of them
            max_outstanding_pings=2,
            pending_size=PENDING_BYTES,
        )
        obey_cancellation()
        publisher = Publisher(client)
        await publisher.open()
        bus = Bus(client, publisher, settings)
        await bus.open()
        await _ensure_when_ready(bus)
        yield bus
    finally:
        try:
            async with asyncio.timeout(LEAVE_TIMEOUT_S):
                if client.is_connected:
                    await client.drain()
                elif not client.is_closed:
                    await client.close()
        except (*CONNECTION_FAULTS, TimeoutError) as exc:
            _log.warning("NATS connection did not close cleanly", error=f"{type(exc).__name__}: {exc}")


def user_of(settings: BusSettings) -> str:
    """Who logs in; empty for nobody, and for one whose name cannot stand in a subject.

    A name without a password in the URL is none, but a token, which is a secret.
    """
    url = urlsplit(settings.nats_url.split(",")[0])
    user = settings.nats_user or (url.username or "" if url.password else "")
    return user if subjects.TOKEN.match(user) else ""


async def _ensure_when_ready(bus: Bus) -> None:
    """JetStream may still be electing a leader when the connection already stands."""
    while True:
        try:
            return await bus.ensure()
        except StoreUnavailable as exc:
            _log.warning("JetStream is not ready, retrying", reason=exc.message)
            await asyncio.sleep(RECONNECT_WAIT_S)
