"""Every NATS subject, and what may stand in one. No other module spells a subject.

Source: docs/architecture.md, "NATS layout". A token never holds a dot, a wildcard or a space, so a
name that came from outside cannot widen a subject.
"""

from __future__ import annotations

import base64
import re
import secrets
import time
from typing import Final

from common.errors import InvalidParams

# \Z, not $: $ also matches before a trailing line feed, which would end a line of the NATS protocol.
TOKEN: Final = re.compile(r"^[A-Za-z0-9_-]{1,64}\Z")
CHAT: Final = "chat"
"""The server of chat turns: the workers themselves. No server of the catalog has this name."""
SERVER_NAME: Final = re.compile(r"^[a-z0-9][a-z0-9_-]{0,31}\Z")

ALL_JOBS: Final = "jobs.*.*"
ALL_EVENTS: Final = "sessions.>"
ALL_DEAD: Final = "dead.*.*"
ALL_CLOSES: Final = "close.*"
ALL_LIVE: Final = "live.>"
ALL_LIVE_CANCELS: Final = "live.*.*.cancel"
ALL_QUEUED_EVENTS: Final = "sessions.*.*.queued"


def new_session_id() -> str:
    """96 random bits: a session id is an address that must not be guessed."""
    return secrets.token_hex(12)


def new_job_id() -> str:
    """Milliseconds, then 48 random bits, so that ids sort by the time of their making."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(6)}"


def new_gateway_id() -> str:
    return f"g-{secrets.token_hex(4)}"


def new_worker_id() -> str:
    return f"w-{secrets.token_hex(4)}"


def token(value: str, name: str) -> str:
    """`value` itself, if it may stand in a subject.

    Raises:
        InvalidParams: if it is empty, longer than 64 or holds anything but letters, digits, - and _.
    """
    if not TOKEN.match(value):
        raise InvalidParams(
            "invalid params", [{"path": f"$.{name}", "message": "must be 1-64 letters, digits, - or _"}]
        )
    return value


def jobs(server: str, session: str) -> str:
    return f"jobs.{server}.{session}"


def jobs_of_server(server: str) -> str:
    return f"jobs.{server}.*"


def jobs_of_session(session: str) -> str:
    return f"jobs.*.{session}"


def event(session: str, job: str) -> str:
    return f"sessions.{session}.{job}"


def job_of_event(subject: str) -> tuple[str, str]:
    """Session and job of an event's subject."""
    _, session, job = subject.split(".")[:3]
    return session, job


def queued_event(session: str, job: str) -> str:
    """Apart from the job's other events, so that these are fenced from number 0 on (docs/adr/0002)."""
    return f"sessions.{session}.{job}.queued"


def waiting_event(session: str, job: str) -> str:
    """How far a job has come in its queue: told by the gateways, beside the worker's events."""
    return f"sessions.{session}.{job}.waiting"


def cancel_event(session: str, job: str) -> str:
    """That a client has asked for the end of a job: told by the gateways, beside the worker's events."""
    return f"sessions.{session}.{job}.cancel"


def decision_event(session: str, job: str) -> str:
    """Whether a call that a chat turn asks leave for may run: told by the gateways, beside the worker's events."""
    return f"sessions.{session}.{job}.decision"


def events_of_session(session: str) -> str:
    return f"sessions.{session}.>"


def live_of_session(session: str) -> str:
    return f"live.{session}.>"


def dead(server: str, session: str) -> str:
    return f"dead.{server}.{session}"


def dead_of_server(server: str) -> str:
    return f"dead.{server}.*"


def close(session: str) -> str:
    return f"close.{session}"


def handoff(worker: str) -> str:
    return f"workers.{worker}.handoff"


def alive(worker: str) -> str:
    return f"workers.{worker}.alive"


def pull_request(stream: str, consumer: str) -> str:
    return f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"


def stream_info(stream: str) -> str:
    return f"$JS.API.STREAM.INFO.{stream}"


def direct_get(stream: str) -> str:
    return f"$JS.API.DIRECT.GET.{stream}"


def keys_of_bucket(bucket: str) -> str:
    return f"$KV.{bucket}.>"


def bucket_key(bucket: str, key: str) -> str:
    return f"$KV.{bucket}.{key}"


def new_object_id(session: str, job: str, stream: str) -> str:
    """What NATS calls the nuid of an object. Two tokens, so that all of a session's can be named at once."""
    return f"{session}.{job}-{stream}-{secrets.token_hex(4)}"


def all_objects_of_session(session: str) -> str:
    return f"{session}.>"


def all_chunks(bucket: str) -> str:
    return f"$O.{bucket}.C.>"


def all_object_infos(bucket: str) -> str:
    return f"$O.{bucket}.M.>"


def chunks_of_object(bucket: str, object_id: str) -> str:
    return f"$O.{bucket}.C.{object_id}"


def object_info(bucket: str, name: str) -> str:
    return f"$O.{bucket}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"


def segment_key(session: str, number: str) -> str:
    """A segment of a conversation, or a compression dictionary, whose place is that of a session."""
    return f"{session}.{number}"


def segments_of_session(session: str) -> str:
    return f"{session}.*"


def new_part_id(session: str) -> str:
    """A part of a message that is too large to stand in it: an object of the session's."""
    return f"{session}.part-{secrets.token_hex(8)}"


def lease_key(session: str, server: str) -> str:
    return f"{session}.{server}"


def idempotency_key(session: str, digest: str) -> str:
    return f"{session}.{digest}"


def inbox(user: str) -> str:
    """What the subjects begin with on which a user gets answers: nobody else may read them. Without one: anybody."""
    return f"_INBOX_{user}" if user else "_INBOX"


def micro_stats(service: str) -> str:
    return f"$SRV.STATS.{service}"
