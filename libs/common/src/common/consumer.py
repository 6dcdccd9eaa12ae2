"""Pulling jobs by credit: ask for as many as there is room for, top up as room comes back.

nats-py's `fetch` waits for one pull at a time (about 1,000 jobs/s); one inbox with standing pull requests
takes a job the moment it is stored. Credit equals free slots, so the same mechanism is the concurrency limit.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from nats.aio.client import Client
from nats.aio.msg import Msg

from common import headers, subjects
from common.errors import ServiceError, UndecodableMessage
from common.log import get
from common.publisher import CONNECTION_FAULTS
from common.schema import Job

_log = get(__name__)

PULL_EXPIRES_S = 30.0
PULL_HEARTBEAT_S = 5.0
RETRY_S = 0.5
TOP_UP_FRACTION = 4
"""Ask again when a quarter of the room is unasked: fewer requests than one for each job."""

Room = Callable[[], int]
"""How many more jobs of this server the worker can take now."""
Reject = Callable[[Msg, UndecodableMessage], Awaitable[None]]


@dataclass(frozen=True)
class Delivery:
    """A job as the store delivered it, with the means to settle it."""

    client: Client
    job: Job
    payload: bytes
    ack_subject: str
    stream_seq: int
    deliveries: int
    """How often the store has delivered it: handing back counts too, so this is not the attempt."""
    traceparent: str | None = None

    async def ack(self) -> None:
        """Settled: the job's terminal event is stored."""
        await self._settle(b"+ACK")

    async def hand_back(self, delay_s: float = 0.0) -> None:
        """Let the store deliver it again, to whichever worker has room, after `delay_s`."""
        await self._settle(b"-NAK" + (json.dumps({"delay": int(delay_s * 1e9)}).encode() if delay_s else b""))

    async def in_progress(self) -> None:
        """Heartbeat: restarts the store's ack_wait."""
        await self._settle(b"+WPI")

    async def _settle(self, verdict: bytes) -> None:
        try:
            await self.client.publish(self.ack_subject, verdict)
        except CONNECTION_FAULTS as exc:
            # Not settled means delivered again after ack_wait, where the stored events say what to do.
            _log.warning("delivery not settled", job=self.job.id, verdict=verdict.decode(), error=str(exc))


class JobConsumer:
    """Standing pulls on one server's durable consumer. Made by `Bus.consume_jobs()`; iterate to get deliveries."""

    def __init__(self, client: Client, stream: str, server: str, room: Room, reject: Reject) -> None:
        self._client = client
        self._server = server
        self._room = room
        self._reject = reject
        self._pull_subject = subjects.pull_request(stream, server)
        self._inbox = client.new_inbox()
        self.credit = 0
        """Jobs that were asked for and have not come."""
        self._wake = asyncio.Event()
        self._arrived: asyncio.Queue[Msg] = asyncio.Queue()  # bounded by the credit
        self._last_sign = 0.0
        self._not_before = 0.0

    @property
    def outstanding(self) -> int:
        """Jobs that will still be yielded if nobody asks for more."""
        return self.credit + self._arrived.qsize()

    def wake(self) -> None:
        """There may be more room: look again."""
        self._wake.set()

    def reset(self) -> None:
        """The connection was lost, and with it every standing pull."""
        self.credit = 0
        self._wake.set()

    def stop_asking(self) -> None:
        """Take no more than what is already on its way."""
        self._room = lambda: 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        subscription = await self._client.subscribe(self._inbox, cb=self._on_message)
        try:
            async with asyncio.TaskGroup() as tasks:
                asking = tasks.create_task(self._keep_asking())
                try:
                    yield
                finally:
                    asking.cancel()
        finally:
            if not self._client.is_closed:
                # The store drops the standing pulls of an inbox that nobody listens to.
                with suppress(*CONNECTION_FAULTS):
                    await subscription.unsubscribe()

    async def __aiter__(self) -> AsyncIterator[Delivery]:
        while True:
            if self._room() > self.outstanding:
                self._wake.set()  # the job that came before took no room: unreadable, handed back, or here already
            msg = await self._arrived.get()
            try:
                job = read_job(msg.subject, msg.data)
            except UndecodableMessage as exc:
                try:
                    await self._reject(msg, exc)
                except ServiceError as fault:
                    _log.warning("undecodable job stays queued", subject=msg.subject, reason=fault.message)
                continue
            meta = msg.metadata
            yield Delivery(
                client=self._client,
                job=job,
                payload=msg.data,
                ack_subject=msg.reply,
                stream_seq=meta.sequence.stream,
                deliveries=meta.num_delivered,
                traceparent=(msg.headers or {}).get(headers.TRACEPARENT),
            )

    async def _keep_asking(self) -> None:
        loop = asyncio.get_running_loop()
        self._last_sign = loop.time()
        while True:
            self._wake.clear()
            pause = self._not_before - loop.time()
            if pause > 0:
                await asyncio.sleep(pause)
            room = self._room()
            unasked = room - self.outstanding
            if unasked > 0 and unasked * TOP_UP_FRACTION >= room:
                await self._ask(unasked)
            try:
                async with asyncio.timeout(PULL_HEARTBEAT_S):
                    await self._wake.wait()
            except TimeoutError:
                # Two heartbeats missed: the pulls are gone (a lost leader, a deleted consumer).
                if self.credit and loop.time() - self._last_sign > 2 * PULL_HEARTBEAT_S + 1:
                    self.credit = 0

    async def _ask(self, count: int) -> None:
        request = {
            "batch": count,
            "expires": int(PULL_EXPIRES_S * 1e9),
            "idle_heartbeat": int(PULL_HEARTBEAT_S * 1e9),
        }
        try:
            await self._client.publish(self._pull_subject, json.dumps(request).encode(), reply=self._inbox)
        except CONNECTION_FAULTS as exc:
            self._pause()
            _log.warning("cannot ask for jobs", server=self._server, error=str(exc))
            return
        self.credit += count
        self._last_sign = asyncio.get_running_loop().time()

    async def _on_message(self, msg: Msg) -> None:
        self._last_sign = asyncio.get_running_loop().time()
        fields = msg.headers or {}
        status = fields.get(headers.STATUS)
        if status is None:
            self.credit = max(0, self.credit - 1)
            self._arrived.put_nowait(msg)
            return
        if status == "100":
            return  # idle heartbeat
        # A pull ended. 408 says what it still owed; an ending that does not say ends all that we count on.
        self.credit = max(0, self.credit - int(fields.get(headers.PENDING_MESSAGES, self.credit)))
        if status != "408":
            # nats-py takes the header behind a status without a text for its text.
            reason = fields.get(headers.DESCRIPTION, "").split("\n")[0]
            _log.info("pull ended", server=self._server, status=status, reason=reason)
            self._pause()
        self._wake.set()

    def _pause(self) -> None:
        # Jitter, so that the workers of a store that comes back do not ask in step.
        self._not_before = asyncio.get_running_loop().time() + RETRY_S * (0.5 + random.random())


def read_job(subject: str, payload: bytes) -> Job:
    """The job of a message in the queue.

    Raises:
        UndecodableMessage: also if it is another session's or another server's than its subject says.
    """
    job = Job.decode(payload)
    if subject != subjects.jobs(job.server, job.session):
        raise UndecodableMessage(f"a job for {job.server} in session {job.session} under the subject {subject}")
    return job
