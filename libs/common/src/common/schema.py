"""The messages on the bus: frozen, versioned, msgpack.

A reader takes what it knows and ignores fields that it does not, so a newer writer may add fields. An
unknown version or a missing field is an error, never a guess. The bytes of each message are pinned in
tests/golden/.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, Final, Literal, Self

import msgpack
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from typing_extensions import TypedDict

from common.errors import UndecodableMessage

VERSION: Final = 1

MAX_TIMEOUT_MS: Final = 86_400_000
"""A day: what the catalog allows at most."""

EventType = Literal["queued", "started", "progress", "output", "step", "decision", "retrying", "cancelling", "result"]
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
            fields = msgpack.unpackb(raw, strict_map_key=False)
            if isinstance(fields, dict):
                fields.setdefault("v", None)  # the default is for writers: a message that states none is refused
            return cls.model_validate(fields)
        except ValidationError as exc:
            faults = "; ".join(
                f"{'.'.join(map(str, e['loc'])) or 'message'}: {e['msg']}" for e in exc.errors(include_url=False)
            )
            raise UndecodableMessage(f"not a {cls.__name__} of version {VERSION}: {faults}") from exc
        except (ValueError, TypeError, msgpack.exceptions.UnpackException, RecursionError) as exc:
            # TypeError: a list or a map as key of a map.
            raise UndecodableMessage(f"not msgpack: {exc or type(exc).__name__}") from exc


class _Telling(Message):
    """A message that holds what a tool said: a job must end with its answer, so no answer is refused here."""

    def encode(self) -> bytes:
        try:
            return super().encode()
        except (ValueError, OverflowError):
            packed: bytes = msgpack.packb(nearest(self.__dict__))
            return packed


def nearest(value: Any) -> Any:
    """`value` as msgpack can say it. JSON has whole numbers of any size, and half surrogates in escapes."""
    if isinstance(value, dict):
        return {nearest(key): nearest(item) for key, item in value.items()}
    if isinstance(value, list):
        return [nearest(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        try:
            return float(value)
        except OverflowError:
            return None
    return value


Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
"""Something that stands in a subject, as `common.subjects.TOKEN`; pydantic's $ matches at the very end only."""


class AttemptRecord(TypedDict):
    """One attempt of a job, as a dead letter keeps it; texts that nobody told are empty."""

    attempt: int
    worker: str
    engine: str
    container: str
    image_digest: str
    started_ms: int
    ended_ms: int | None
    """None, like `error`, where its worker was lost, so that nobody told its end."""
    error: dict[str, Any] | None


class Job(Message):
    """One request to a server in a session; the unit of queueing. Subject: `jobs.<server>.<session>`."""

    id: Id
    session: Id
    tenant: str
    server: Id
    tool: str = Field(max_length=256)
    arguments: dict[str, Any]
    meta: dict[str, Any] = Field(default_factory=dict)
    """The caller's `_meta`, handed to the tool as it is."""
    created_ms: int
    start_by_ms: int
    """Schedule-to-start: after this moment the job ends `timed_out` instead of starting."""
    timeout_ms: int = Field(ge=1, le=MAX_TIMEOUT_MS)
    """Start-to-close: how long one attempt may run."""
    heartbeat_ms: int | None = Field(default=None, ge=1, le=MAX_TIMEOUT_MS)
    """Heartbeat: how long the running tool may tell nothing, neither progress nor output; None asks for none."""
    kind: Literal["call", "files", "chat"] = "call"
    """A call of one of the server's tools, of a file operation on the container of the session's lease, or a turn of
    the session's chat with a model: at most one of these waits or runs in a session."""
    artifact: bool = False
    """The caller wants the output as an artifact, whatever its size, and not in events."""
    record: bool = False
    """The call and its result become a message of the session's conversation."""
    redrive_of: str = ""
    """The job that was given up on and whose dead letter this one was made of."""
    attempts_before: list[AttemptRecord] = Field(default_factory=list)
    """Those of the jobs that it was redriven from; its own are counted on from them."""

    @property
    def first_attempt(self) -> int:
        return self.attempts_before[-1]["attempt"] + 1 if self.attempts_before else 1


class Event(_Telling):
    """One stored reply message of a job; its number is the stream's.

    Subject: `sessions.<session>.<job>`. Below it, with subjects of their own: `queued`, `cancelling` (`.cancel`),
    `decision` (of a call that a turn asks leave for), and the `progress` of a job that waits (`.waiting`).
    """

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


class DeadLetter(_Telling):
    """A job that the system gave up on; its number in the stream is its id. Subject: `dead.<server>.<session>`."""

    job: str
    """Empty, like `tool`, where the job's message cannot be read and nothing else tells."""
    tenant: str
    """Empty where nobody knows."""
    server: str
    session: str
    tool: str
    redrive_of: str
    reason: str
    error: dict[str, Any]
    """That of the job's `result` event; `reason` is its message."""
    stderr: str
    """The last lines of the last attempt that told any."""
    image_digest: str
    traceparent: str
    attempts: list[AttemptRecord]
    """All that is known, those of the jobs that it was redriven from first."""
    subject: str
    payload: bytes
    """The job's message as it was stored, so that it can be sent again."""
    size: int
    """Bytes of that message: more than `payload` has where a letter could not hold it."""
    deliveries: int
    time_ms: int


class SessionRecord(Message):
    """Whose a session is. KV `sessions`, key `<session>`."""

    tenant: str
    created_ms: int
    conversation_ttl_s: float | None = Field(default=None, ge=1)
    """How long its conversation is kept after the last message; None is as long as a session is."""
    record: bool = False
    """Direct tool calls become messages of its conversation."""
    allow: list[str] | None = None
    """What may be called in it, each `<server>` or `<server>/<tool>`; None is everything."""

    def allows(self, server: str, tool: str | None) -> bool:
        """May that tool be called? Without one: may everything of the server?"""
        return self.allow is None or server in self.allow or (tool is not None and f"{server}/{tool}" in self.allow)


class IdempotencyRecord(Message):
    """Which job a client's idempotency key stands for. KV `idempotency`, key `<session>.<hash of the key>`."""

    job: str
    fingerprint: str
    """Of server, tool and arguments: the same key with others is refused."""
    created_ms: int


class RoleRecord(Message):
    """Who does what only one process may do. KV `roles`, key `<role>`, TTL."""

    holder: str


class LeaseRecord(Message):
    """Which container a session holds. KV `leases`, key `<session>.<server>`."""

    worker: str
    container: str


class ToolListing(_Telling):
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
