"""A connection to NATS: core messages, acknowledged publishes, and stored messages read without a consumer.

Exceptions of nats-py are turned into ours here (`translated`), for this module and those that build on it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext

from common import headers, subjects
from common.allowance import Share, own_share
from common.batch_reader import Batch, BatchReader
from common.errors import StoreUnavailable
from common.publisher import CONNECTION_FAULTS, LEADERLESS_S, Publisher
from common.streams import Keeping, Limits, keeping

REQUEST_TIMEOUT_S = 5.0
READ_TRY_S = 1.0
"""How long one try of a read may take. A node that is no leader does not answer at all."""
READ_RETRY_S = 0.1
REPLAY_BATCH = 256
REPLAY_BATCH_BYTES = 1024 * 1024
"""Set aside for one batch, or a quarter of the reader's allowance where that is less. A batch ends at either bound, so
that a thousand clients that resume at once fit in memory."""
HEADER_BYTES = 4096

WRONG_LAST_SEQUENCE = (10071, 10164)
"""JetStream's codes for a publish behind another message than the one that it named."""
REFUSED_BEHIND_ANOTHER = (*WRONG_LAST_SEQUENCE, 10201)
"""JetStream's codes for what is not, or not any more, the next of its subject. 10201: a batch in which a message has an
id that is stored already."""
STORE_FULL = 10077
"""JetStream's code for a stream, or a subject of it, that has no room."""


T = TypeVar("T")
_LEADERLESS = (nats.errors.NoRespondersError, nats.errors.TimeoutError, nats.js.errors.ServiceUnavailableError)
"""What a read meets while the stream elects a leader."""


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn what nats-py raises into what our callers know, and a cancellation that it has lost into one."""
    try:
        yield
    except nats.js.errors.APIError as exc:
        obey_cancellation()
        raise StoreUnavailable(f"{doing}: JetStream refused: {exc.description or exc}", err_code=exc.err_code) from exc
    except (*CONNECTION_FAULTS, TimeoutError) as exc:
        obey_cancellation()
        raise StoreUnavailable(f"{doing}: NATS does not answer ({type(exc).__name__})") from exc
    obey_cancellation()


def obey_cancellation() -> None:
    """CPython 3.11's `wait_for`, by which nats-py waits, loses a cancellation that comes as the wait ends."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def without_credentials(urls: str) -> str:
    """Addresses as they may be logged."""
    return ",".join(url.rsplit("@", 1)[-1] for url in urls.split(","))


class NatsConnection:
    """Safe for use by all tasks of the process."""

    def __init__(self, client: Client, publisher: Publisher) -> None:
        self.client = client
        self._publisher = publisher
        self._js: JetStreamContext = client.jetstream(timeout=REQUEST_TIMEOUT_S)
        self._reads: JetStreamContext = client.jetstream(timeout=READ_TRY_S)
        self._batches = BatchReader(client)

    async def open(self) -> None:
        """Comes first, once."""
        await self._batches.open()

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

    # --- core messages --------------------------------------------------------------------------------

    async def publish(self, subject: str, payload: bytes = b"") -> None:
        with translated(f"publishing to {subject}"):
            await self.client.publish(subject, payload)

    async def request(
        self, subject: str, payload: bytes, timeout_s: float, message_headers: dict[str, str] | None = None
    ) -> bytes | None:
        """Ask whoever listens. None if nobody does.

        Raises:
            StoreUnavailable: if somebody listens but did not answer in time, or NATS is away.
        """
        with translated(f"asking {subject}"):
            try:
                reply = await self.client.request(subject, payload, timeout=timeout_s, headers=message_headers)
            except nats.errors.NoRespondersError:
                return None
        return reply.data

    async def gather(self, subject: str, wait_s: float) -> list[dict[str, Any]]:
        """All JSON answers to a request that come within `wait_s` seconds."""
        inbox = self.client.new_inbox()
        answers: list[dict[str, Any]] = []
        with translated(f"asking {subject}"):
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
            with translated("unsubscribing"):
                try:
                    await subscription.unsubscribe()
                except nats.errors.BadSubscriptionError:
                    return  # the connection closed under it

    # --- streams --------------------------------------------------------------------------------------

    async def keeping(self, limits: Limits) -> list[Keeping]:
        """How each stream keeps what it acknowledges."""
        with translated("reading the streams' settings"):
            return await keeping(self._js, limits)

    # --- stored messages ------------------------------------------------------------------------------

    async def patiently(self, doing: str, read: Callable[[], Awaitable[T]]) -> T:
        """What `read` returns, which is tried again while the stream has no leader.

        Raises:
            StoreUnavailable: if it has none for too long, or refuses.
        """
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + LEADERLESS_S
        with translated(doing):
            while True:
                try:
                    return await read()
                except _LEADERLESS:
                    obey_cancellation()
                    if not self.connected or loop.time() >= give_up_at:
                        raise
                await asyncio.sleep(READ_RETRY_S)

    async def _stored(
        self, stream: str, subject: str, first: int, share: Share | None = None
    ) -> AsyncGenerator[tuple[int, Msg]]:
        """Every stored message of a subject from number `first` on, with its number.

        A batch is held by `share`, each message until the next one is asked for.
        """
        with ExitStack() as stack:
            share = share or stack.enter_context(own_share())
            room = min(REPLAY_BATCH_BYTES, share.limit // 4)
            # nats-server ends a batch with the message that reaches `max_bytes`. Ordinary ones still fit in then.
            request = {"next_by_subj": subject, "batch": REPLAY_BATCH, "max_bytes": room * 3 // 4}
            refused = 0
            more = True
            while more:
                held = _Held(share, max(room, refused))
                await held.set_aside()
                try:
                    batch = await self._direct_get_batch(stream, {**request, "seq": first}, held.keep)
                    held.give_rest()
                    more, refused = batch.more, batch.refused
                    while batch.found:
                        seq, msg = batch.found.popleft()
                        yield seq, msg
                        held.give(msg)
                        first = seq + 1
                finally:
                    held.give_all()

    async def _last_stored(self, stream: str, of_subjects: Sequence[str]) -> list[tuple[int, Msg]]:
        """The last message of each subject that has one, with its number; 1,024 subjects at most."""
        request = {"multi_last": list(of_subjects), "batch": len(of_subjects)}
        return list((await self._direct_get_batch(stream, request)).found)

    async def _last_stored_as(self, stream: str, subject: str, msg_id: str) -> int | None:
        """Number of the subject's last message if it has that id: nats-server 2.15 looks at the fence before the id."""
        try:
            msg = await self._reads.get_last_msg(stream, subject)
        except nats.js.errors.NotFoundError:
            return None  # past its time
        return msg.seq if (msg.headers or {}).get(headers.MSG_ID) == msg_id else None

    async def _direct_get_batch(
        self, stream: str, request: dict[str, Any], keep: Callable[[Msg], bool] | None = None
    ) -> Batch:
        """Stored messages without a consumer (NATS ADR-31), up to the first that `keep` does not want.

        Any replica may answer, also one that is behind.
        """
        with translated(f"reading {stream}"):
            batch = await self._batches.read(subjects.direct_get(stream), request, REQUEST_TIMEOUT_S, keep)
        end = batch.end
        if end[headers.STATUS] not in ("204", "404"):
            raise StoreUnavailable(f"reading {stream}: {end[headers.STATUS]} {end.get(headers.DESCRIPTION, '')}")
        return batch


class _Held:
    """What a batch holds of a share: room that is set aside before it is asked for, then its messages."""

    def __init__(self, share: Share, room: int) -> None:
        self._share = share
        self._room = room
        self._held = 0
        self._used = 0

    async def set_aside(self) -> None:
        await self._share.take(self._room)
        self._held = self._room

    def keep(self, msg: Msg) -> bool:
        """Whether a message fits in; then it is held. Beyond what was set aside it takes what is free."""
        used = self._used + len(msg.data)
        if used > self._held:
            if not self._share.try_take(used - self._held):
                return False
            self._held = used
        self._used = used
        return True

    def give_rest(self) -> None:
        """Of what was set aside."""
        self._share.give(self._held - self._used)
        self._held = self._used

    def give(self, msg: Msg) -> None:
        self._share.give(len(msg.data))
        self._held -= len(msg.data)

    def give_all(self) -> None:
        self._share.give(self._held)
