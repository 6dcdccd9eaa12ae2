"""The streams, consumers and key-value buckets, and how they are made. No other module spells their names.

Source: docs/architecture.md, "NATS layout". Every one of them is bounded in size, in count or in age.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, Final

from nats.js import JetStreamContext
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DiscardPolicy,
    RePublish,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)
from nats.js.errors import APIError, NotFoundError

from common import subjects
from common.errors import NotClustered, StreamConflict

JOBS: Final = "JOBS"
SESSIONS: Final = "SESSIONS"
DEAD_LETTERS: Final = "DEAD_LETTERS"

SERVERS_BUCKET: Final = "servers"
TOOLS_BUCKET: Final = "tools"
LEASES_BUCKET: Final = "leases"
SESSIONS_BUCKET: Final = "sessions"
IDEMPOTENCY_BUCKET: Final = "idempotency"
ROLES_BUCKET: Final = "roles"
CONVERSATIONS_BUCKET: Final = "conversations"
ARTIFACTS_BUCKET: Final = "artifacts"
ARTIFACTS: Final = f"OBJ_{ARTIFACTS_BUCKET}"
"""An object store is a stream of this name (NATS ADR-20)."""

_NO_REPLICAS_ALONE: Final = 10074
"""JetStream's code for replicas > 1 on a server without a cluster."""
_GIB: Final = 1024**3
_HOUR_S: Final = 3600.0
_LETTERS_KEPT_S: Final = 7 * 24 * _HOUR_S


@dataclass(frozen=True)
class Limits:
    """The bounds of the streams that an operator may set."""

    queue_limit: int = 100
    """Jobs of one session that may wait or run on one server; the next one is refused by the store."""
    resume_window_s: float = _HOUR_S
    """How long an event can be replayed."""
    job_retention_s: float = 7 * 24 * _HOUR_S
    """Backstop age of a job message, above a day in the queue and three attempts of a day each. The queue deadline
    itself is in the job: a stream's max_age would also drop jobs that run (docs/adr/0003)."""
    session_ttl_s: float = 24 * _HOUR_S
    """How long a session is known after it was last opened or used."""
    lease_ttl_s: float = 30.0
    """After this long without a renewal a lease is free."""
    lease_memory_s: float = _HOUR_S
    """How long a lapsed lease is remembered, so that the next call can say `state_lost`."""
    role_memory_s: float = 60.0
    """How long a lapsed role is remembered; for nothing but that the bucket stays small."""
    artifact_ttl_s: float = 24 * _HOUR_S
    """How long output beyond a first part can be read."""
    artifact_store_bytes: int = 8 * _GIB
    """What the output of all jobs may take."""
    conversation_store_bytes: int = 2 * _GIB
    """What the messages of all conversations may take."""
    conversation_memory_s: float = _HOUR_S
    """How long it is remembered that a segment was removed: longer than a writer trusts what it knows of it."""
    replicas: int = 1


def stream_configs(limits: Limits) -> list[StreamConfig]:
    """The configuration of every stream, KV buckets included."""
    return [
        StreamConfig(
            name=JOBS,
            subjects=[subjects.ALL_JOBS],
            retention=RetentionPolicy.WORK_QUEUE,
            storage=StorageType.FILE,
            discard=DiscardPolicy.NEW,
            discard_new_per_subject=True,
            max_msgs_per_subject=limits.queue_limit,
            max_age=limits.job_retention_s,
            max_bytes=2 * _GIB,
            duplicate_window=120.0,
            allow_direct=True,
            num_replicas=limits.replicas,
        ),
        StreamConfig(
            name=SESSIONS,
            subjects=[subjects.ALL_EVENTS],
            retention=RetentionPolicy.LIMITS,
            storage=StorageType.FILE,
            discard=DiscardPolicy.OLD,
            max_age=limits.resume_window_s,
            max_bytes=4 * _GIB,
            duplicate_window=limits.resume_window_s,
            allow_direct=True,
            republish=RePublish(src=subjects.ALL_EVENTS, dest=subjects.ALL_LIVE),
            # Events that name chunks are stored many at a time (docs/adr/0015).
            allow_atomic=True,
            num_replicas=limits.replicas,
        ),
        StreamConfig(
            name=DEAD_LETTERS,
            subjects=[subjects.ALL_DEAD],
            retention=RetentionPolicy.LIMITS,
            storage=StorageType.FILE,
            discard=DiscardPolicy.OLD,
            max_age=_LETTERS_KEPT_S,
            max_bytes=1 * _GIB,
            allow_direct=True,
            # As long as there are letters: a job whose letter is stored may come again at any later time.
            duplicate_window=_LETTERS_KEPT_S,
            num_replicas=limits.replicas,
        ),
        StreamConfig(
            name=ARTIFACTS,
            subjects=[subjects.all_chunks(ARTIFACTS_BUCKET), subjects.all_object_infos(ARTIFACTS_BUCKET)],
            retention=RetentionPolicy.LIMITS,
            storage=StorageType.FILE,
            # A full store refuses what is new: the job that produces it ends, and no other loses anything.
            discard=DiscardPolicy.NEW,
            max_age=limits.artifact_ttl_s,
            max_bytes=limits.artifact_store_bytes,
            duplicate_window=min(120.0, limits.artifact_ttl_s),
            allow_rollup_hdrs=True,
            allow_direct=True,
            num_replicas=limits.replicas,
        ),
        _bucket_config(SERVERS_BUCKET, limits),
        _bucket_config(TOOLS_BUCKET, limits),
        _bucket_config(LEASES_BUCKET, limits, marker_ttl_s=limits.lease_memory_s),
        _bucket_config(SESSIONS_BUCKET, limits, max_age_s=limits.session_ttl_s),
        _bucket_config(IDEMPOTENCY_BUCKET, limits, max_age_s=limits.resume_window_s),
        _bucket_config(ROLES_BUCKET, limits, marker_ttl_s=limits.role_memory_s),
        _bucket_config(
            CONVERSATIONS_BUCKET,
            limits,
            marker_ttl_s=limits.conversation_memory_s,
            max_bytes=limits.conversation_store_bytes,
            # Segments are merged and cut in one step (docs/adr/0017).
            atomic=True,
        ),
    ]


def bucket_stream(bucket: str) -> str:
    """A KV bucket is a stream of this name (NATS ADR-8)."""
    return f"KV_{bucket}"


def _bucket_config(
    bucket: str,
    limits: Limits,
    *,
    max_age_s: float = 0,
    marker_ttl_s: float | None = None,
    max_bytes: int = _GIB // 4,
    atomic: bool = False,
) -> StreamConfig:
    """A KV bucket is a stream of this form (NATS ADR-8); made here so that conflicts are found the same way."""
    return StreamConfig(
        name=bucket_stream(bucket),
        subjects=[subjects.keys_of_bucket(bucket)],
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        discard=DiscardPolicy.NEW,
        max_msgs_per_subject=1,
        max_age=max_age_s,
        max_bytes=max_bytes,
        duplicate_window=min(120.0, max_age_s or 120.0),
        allow_rollup_hdrs=True,
        deny_delete=True,
        allow_atomic=True if atomic else None,
        allow_direct=True,
        allow_msg_ttl=True if marker_ttl_s else None,
        subject_delete_marker_ttl=marker_ttl_s,
        num_replicas=limits.replicas,
    )


def consumer_config(server: str, max_in_flight: int, ack_wait_s: float) -> ConsumerConfig:
    """The durable consumer of one server on JOBS.

    `max_in_flight` is the cluster-wide concurrency of the server. Deliveries are not limited here: handing a
    job back counts as one, so attempts are counted by `started` events instead (docs/adr/0002).
    """
    return ConsumerConfig(
        durable_name=server,
        filter_subject=subjects.jobs_of_server(server),
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=ack_wait_s,
        max_deliver=-1,
        max_ack_pending=max_in_flight,
        max_waiting=512,
    )


async def ensure_streams(js: JetStreamContext, limits: Limits) -> str:
    """Make what is missing; leave what is there. Returns the epoch of the numbering of SESSIONS.

    The epoch changes when the stream is made anew, so that a client's number from before is not mistaken
    for one of now.

    Raises:
        StreamConflict: if a stream exists with settings other than ours.
        NotClustered: if the server stands alone and more than one replica is asked for.
    """
    epoch = ""
    for config in stream_configs(limits):
        assert config.name is not None
        try:
            info = await js.stream_info(config.name)
        except NotFoundError:
            await _add_stream(js, config)
            info = await js.stream_info(config.name)
        differences = _differences(config, info.config)
        if differences:
            raise StreamConflict(config.name, differences)
        if config.name == SESSIONS:
            epoch = hashlib.sha256(str(info.created).encode()).hexdigest()[:12]
    return epoch


@dataclass(frozen=True)
class Keeping:
    """How a stream that exists keeps what it acknowledges."""

    stream: str
    replicas: int
    asynchronous: bool
    """It acknowledges what is still in the server's memory (persist_mode async, NATS ADR-56)."""


async def keeping(js: JetStreamContext, limits: Limits) -> list[Keeping]:
    """Of every stream, KV buckets included."""
    found = []
    for name in (config.name or "" for config in stream_configs(limits)):
        config = (await js.stream_info(name)).config
        # Before 2.12 servers have no persist_mode; those that have one leave out the default.
        found.append(Keeping(name, config.num_replicas or 1, str(_plain(config.persist_mode)) == "async"))
    return found


async def _add_stream(js: JetStreamContext, config: StreamConfig) -> None:
    try:
        await js.add_stream(config)
    except APIError as exc:
        if exc.err_code == _NO_REPLICAS_ALONE:
            raise NotClustered(config.num_replicas or 1) from exc
        raise


async def ensure_consumer(js: JetStreamContext, config: ConsumerConfig) -> None:
    """Make the consumer, or bring its limits up to date. JetStream keeps its position either way."""
    await js.add_consumer(JOBS, config)


def _differences(wanted: StreamConfig, have: StreamConfig) -> dict[str, tuple[Any, Any]]:
    """What differs among the settings that we state; fields that we leave unset are the server's business.

    Fewer or more copies are no conflict: an operator changes them while services run. `common.durability` warns.
    """
    differences = {}
    actual = asdict(have)
    for field, value in asdict(wanted).items():
        if field == "num_replicas" or value is None or (isinstance(value, dict) and not any(value.values())):
            continue
        want, got = _plain(value), _plain(actual[field])
        if want != got:
            differences[field] = (got, want)
    return differences


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if v}
    return value
