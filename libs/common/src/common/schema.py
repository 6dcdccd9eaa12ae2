"""The messages on the bus: frozen, versioned, msgpack.

A reader takes what it knows and ignores fields that it does not, so a newer writer may add fields. An
unknown version or a missing field is an error, never a guess. The bytes of each message are pinned in
tests/golden/.
"""

from __future__ import annotations

import time
from typing import Any, Final, Literal, Self

import msgpack
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.errors import UndecodableMessage

VERSION: Final = 1

EventType = Literal["queued", "started", "progress", "output", "result"]
"""What happened to a job. `result` is the terminal event; there is exactly one."""

Outcome = Literal["succeeded", "failed", "cancelled", "timed_out", "outcome_unknown", "dead_lettered"]
"""How a job ended. `failed` is an answer of the tool, or of the system in the tool's place."""


def now_ms() -> int:
    """Wall clock in milliseconds: comparable between processes, so used on the wire only."""
    return time.time_ns() // 1_000_000


class Message(BaseModel):
    """Base of what travels on the bus."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    v: Literal[1] = VERSION

    def encode(self) -> bytes:
        # The fields are plain values already: a shallow dict is all that msgpack needs, and spares the
        # deep copy that model_dump() makes of a large result.
        packed: bytes = msgpack.packb(self.__dict__)
        return packed

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        """
        Raises:
            UndecodableMessage: if the bytes are not msgpack, not a map, or not this message at version 1.
        """
        try:
            return cls.model_validate(msgpack.unpackb(raw, strict_map_key=False))
        except ValidationError as exc:
            faults = "; ".join(
                f"{'.'.join(map(str, e['loc'])) or 'message'}: {e['msg']}" for e in exc.errors(include_url=False)
            )
            raise UndecodableMessage(f"not a {cls.__name__} of version {VERSION}: {faults}") from exc
        except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as exc:
            raise UndecodableMessage(f"not msgpack: {exc or type(exc).__name__}") from exc


class Job(Message):
    """One request to a server in a session; the unit of queueing. Subject: `jobs.<server>.<session>`."""

    id: str
    session: str
    tenant: str
    server: str
    tool: str
    arguments: dict[str, Any]
    meta: dict[str, Any] = Field(default_factory=dict)
    """The caller's `_meta`, handed to the tool as it is."""
    created_ms: int
    start_by_ms: int
    """Schedule-to-start: after this moment the job ends `timed_out` instead of starting."""
    timeout_ms: int
    """Start-to-close: how long one attempt may run."""
    queued_seq: int
    """Number of the job's `queued` event: the fence for its first `started`."""


class Event(Message):
    """One stored reply message of a job. Subject: `sessions.<session>.<job>`; its number is the stream's."""

    job: str
    session: str
    attempt: int
    """Which delivery of the job to a worker this belongs to, from 1; 0 before the first."""
    type: EventType
    time_ms: int
    data: dict[str, Any]

    @property
    def terminal(self) -> bool:
        return self.type == "result"


class DeadLetter(Message):
    """A job that the system gave up on. Subject: `dead.<server>.<session>`."""

    job: str
    reason: str
    subject: str
    payload: bytes
    """The job's message as it was stored, so that it can be sent again."""
    deliveries: int
    time_ms: int


class SessionRecord(Message):
    """Whose a session is. KV `sessions`, key `<session>`."""

    tenant: str
    created_ms: int


class LeaseRecord(Message):
    """Which container a session holds. KV `leases`, key `<session>.<server>`."""

    worker: str
    container: str


class ToolListing(Message):
    """What a server offers, as a worker last heard it. KV `tools`, key `<server>`.

    `entry` is the catalog entry's fingerprint: a listing of another fingerprint is out of date.
    """

    entry: str
    status: Literal["ready", "failed"]
    reason: str = ""
    """Why no container of the server works, when `status` is `failed`."""
    image_digest: str = ""
    era: Literal["legacy", "modern", "none"] = "none"
    """MCP era the server speaks; `none` for a server that is no MCP server."""
    server_info: dict[str, Any] = Field(default_factory=dict)
    tools: list[dict[str, Any]] = Field(default_factory=list)
    time_ms: int = 0
