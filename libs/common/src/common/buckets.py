"""Key-value buckets: read, written behind a known revision, watched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime

import nats.js.errors
from nats.aio.client import Client
from nats.js.kv import KeyValue

from common import headers, subjects
from common.errors import Fenced, StoreUnavailable
from common.log import get
from common.nats_connection import REFUSED_BEHIND_ANOTHER, NatsConnection, translated
from common.publisher import CONNECTION_FAULTS, Outgoing, Publisher
from common.streams import Limits, bucket_stream

_log = get(__name__)

WATCH_RETRY_S = 0.25


@dataclass(frozen=True)
class Entry:
    """One key of a bucket: `value` is None where it was deleted or has lapsed, `revision` is 0 where it never was."""

    key: str
    value: bytes | None
    revision: int
    written: datetime | None = field(default=None, compare=False)
    """When, by the server's clock; only `Buckets.get()` tells."""


@dataclass(frozen=True)
class Change:
    """Of one key whose last revision is `revision`: a new value, or None that deletes it."""

    key: str
    value: bytes | None
    revision: int
    ttl_s: float | None


class Buckets(NatsConnection):
    """A connection with the buckets of `common.streams`."""

    def __init__(self, client: Client, publisher: Publisher, limits: Limits) -> None:
        super().__init__(client, publisher)
        self.limits = limits
        self.one_replica = limits.replicas == 1
        """It is its own leader then: direct answers are right, and cheaper by the JSON and base64 of the others."""
        self._buckets: dict[str, KeyValue] = {}
        self._watchers: set[KeyValue.KeyWatcher] = set()

    async def bucket(self, name: str) -> KeyValue:
        if name not in self._buckets:
            with translated(f"opening bucket {name}"):
                self._buckets[name] = await self._js.key_value(name)
        return self._buckets[name]

    async def get(self, bucket: str, key: str) -> Entry:
        """As the bucket's leader has it: another replica may not know yet what was just written."""

        async def read() -> Entry:
            try:
                subject = subjects.bucket_key(bucket, key)
                msg = await self._reads.get_last_msg(bucket_stream(bucket), subject, direct=self.one_replica)
            except nats.js.errors.NotFoundError:
                return Entry(key, None, 0)
            # A key that was deleted, or whose TTL ran out, is a marker without a value; its revision still counts.
            return Entry(key, msg.data or None, msg.seq or 0, msg.time)

        return await self.patiently(f"reading {bucket}/{key}", read)

    async def put(self, bucket: str, key: str, value: bytes) -> None:
        with translated(f"writing {bucket}/{key}"):
            await (await self._publisher.send(subjects.bucket_key(bucket, key), value, {})).seq()

    async def purge(self, bucket: str, key: str, remember_s: float) -> None:
        """Delete a key; that it was there is remembered for `remember_s` seconds."""
        kv = await self.bucket(bucket)
        with translated(f"deleting {bucket}/{key}"):
            await kv.purge(key, msg_ttl=remember_s)

    async def delete(self, bucket: str, key: str) -> None:
        kv = await self.bucket(bucket)
        with translated(f"deleting {bucket}/{key}"):
            await kv.delete(key)

    async def keys(self, bucket: str, pattern: str) -> list[str]:
        """Names of the keys that match, without their values, as the bucket's leader has them; those that were
        deleted are among them for as long as the bucket remembers it."""
        stream = bucket_stream(bucket)
        wanted = subjects.bucket_key(bucket, pattern)

        async def read() -> list[str]:
            info = await self._reads.stream_info(stream, subjects_filter=wanted)
            return list(info.state.subjects or {})

        found = await self.patiently(f"listing {bucket}/{pattern}", read)
        return [subject.removeprefix(subjects.bucket_key(bucket, "")) for subject in found]

    async def written(self, bucket: str, pattern: str) -> AsyncGenerator[tuple[Entry, float]]:
        """The keys that match and their values, and how many seconds ago each was written: the oldest first."""
        found = self._stored(bucket_stream(bucket), subjects.bucket_key(bucket, pattern), 1)
        async with aclosing(found) as messages:
            async for seq, msg in messages:
                fields = msg.headers or {}
                key = fields[headers.SUBJECT].removeprefix(subjects.bucket_key(bucket, ""))
                at = datetime.fromisoformat(fields[headers.TIME_STAMP])
                yield Entry(key, msg.data or None, seq), (datetime.now(UTC) - at).total_seconds()

    async def replace_all(self, bucket: str, changes: Sequence[Change], msg_id: str | None = None) -> int:
        """All of them, or none; several only of a bucket that is made for it, at most 1,000. Returns the last one's new
        revision.

        With a `msg_id` it may be repeated after StoreUnavailable: what was stored after all is recognized by it.

        Raises:
            Fenced: if somebody else wrote one of the keys meanwhile; nothing was changed.
            StoreUnavailable: if the store did not confirm; all were changed, or none.
        """
        messages = []
        for change in changes:
            own = {headers.EXPECTED_LAST_SUBJECT_SEQUENCE: str(change.revision)}
            if change.ttl_s is not None:
                own[headers.TTL] = f"{max(1, round(change.ttl_s))}s"
            if change.value is None:
                own[headers.KV_OPERATION] = "DEL"
            messages.append(Outgoing(subjects.bucket_key(bucket, change.key), change.value or b"", own))
        if msg_id is not None:
            messages[-1].headers[headers.MSG_ID] = msg_id
        subject = messages[-1].subject
        with translated(f"writing {bucket}/{changes[-1].key}"):
            try:
                return await (await self._publisher.send_batch(messages)).seq()
            except nats.js.errors.APIError as exc:
                if exc.err_code not in REFUSED_BEHIND_ANOTHER:
                    raise
                if msg_id and (seq := await self._last_stored_as(bucket_stream(bucket), subject, msg_id)):
                    return seq
                raise Fenced(subject, changes[-1].revision) from exc

    async def replace(self, bucket: str, key: str, value: bytes, revision: int, ttl_s: float | None = None) -> int:
        """Write a key whose last revision is `revision` (0: it never was). Returns the new revision.

        Raises:
            Fenced: if somebody else wrote it meanwhile.
        """
        return await self.replace_all(bucket, [Change(key, value, revision, ttl_s)])

    async def watch(self, bucket: str) -> AsyncGenerator[Entry | None]:
        """Every key of a bucket, then None once, then every change for as long as the caller iterates.

        After a lost connection every key comes again, those that were deleted meanwhile among them: nats-py
        would take up to 20 s to find out that its consumer is gone.

        Raises:
            StoreUnavailable: if the watch cannot begin. Once begun, it waits for the store.
        """
        kv = await self.bucket(bucket)
        with translated(f"watching {bucket}"):
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
                with translated(f"watching {bucket}"):
                    return await kv.watchall()
            except StoreUnavailable as exc:
                _log.info("watch waits for the store", bucket=bucket, reason=exc.message)
            await asyncio.sleep(WATCH_RETRY_S)

    async def _stop_watching(self, watcher: KeyValue.KeyWatcher) -> None:
        self._watchers.discard(watcher)
        try:
            await watcher.stop()  # type: ignore[no-untyped-call]
        except CONNECTION_FAULTS:
            return  # stopped before, or the connection closed under it

    async def _restart_watchers(self) -> None:
        """The connection was lost, and with it the consumers that they read."""
        for watcher in list(self._watchers):
            await self._stop_watching(watcher)
