"""Every error that a client, an operator or another service can meet.

ServiceError
├── CallerError                 the caller can fix it; repeating the same request fails again
│   ├── ParseError              the frame or body is not JSON (or msgpack)
│   ├── InvalidRequest          it parses, but is not a request that this door takes
│   ├── UnknownMethod
│   ├── InvalidParams           missing, extra or ill-typed params, each named with its path
│   │   └── InvalidArguments    a tool's arguments break the tool's own JSON Schema
│   ├── UnknownServer
│   ├── UnknownTool
│   ├── Unauthenticated
│   ├── UnknownSession          also another tenant's session: the answer does not tell which
│   ├── UnknownJob
│   ├── UnknownArtifact         also one that expired
│   ├── PayloadTooLarge
│   ├── FilesUnsupported        the server's containers are no session's
│   ├── UnknownDeadLetter       also another tenant's
│   ├── DeadLetterUnreadable    no job can be made of it
│   ├── IdempotencyKeyReused    the key stands for another request
│   ├── RateLimited             the tenant calls faster than it may
│   ├── TooManyJobs             the session has as many jobs as it may, over all servers
│   ├── TooFewMessages          a compression dictionary needs more stored conversations
│   ├── OperatorsOnly           the tenant is none of OPERATORS
│   ├── ConversationMoved       it has other messages by now than the caller knows
│   └── QueueFull               the session's queue on one server is at its limit
├── UnavailableError            nobody's fault for good; repeating later may work
│   ├── StoreUnavailable        NATS or JetStream does not answer
│   ├── ServerNotReady          no worker has a working container of that server
│   ├── ArtifactStoreFull       there is no room for more output, or for an upload
│   └── ConversationStoreFull   there is no room for more messages
└── BrokenError                 the system or its set-up is at fault; an operator must look
    ├── StreamConflict          a stream exists with other settings than ours
    ├── NotClustered            more replicas are asked for than a server that stands alone can have
    ├── UndecodableMessage      bytes on the wire that this version cannot read
    ├── ConversationUnreadable  its newest segment cannot be read, so nothing can be added behind it
    └── Fenced                  the store already holds a newer event of the job

One table follows from the classes: `code` is the JSON-RPC error code and `status` the HTTP status.
Codes of our own are the HTTP status itself, because JSON-RPC reserves -32768..-32000.
"""

from __future__ import annotations

from typing import Any, ClassVar


class ServiceError(Exception):
    """Base of all of our errors: a stable machine-readable `type`, a message for people, facts in `data`."""

    type: ClassVar[str] = "internal_error"
    code: ClassVar[int] = -32603
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, **data: Any) -> None:
        self.message = message
        self.data = data
        super().__init__(message)

    def as_dict(self) -> dict[str, Any]:
        """The shape shared by JSON-RPC `error.data`, HTTP problem bodies and stored events."""
        return {"type": self.type, "message": self.message, "retryable": self.retryable, **self.data}


class CallerError(ServiceError):
    type = "bad_request"
    code = -32600
    status = 400


class ParseError(CallerError):
    type = "parse_error"
    code = -32700


class InvalidRequest(CallerError):
    type = "invalid_request"


class UnknownMethod(CallerError):
    type = "unknown_method"
    code = -32601
    status = 404

    def __init__(self, method: str, known: list[str]) -> None:
        super().__init__(f"unknown method {method!r}; known methods: {', '.join(known)}", method=method)


class InvalidParams(CallerError):
    """`problems` is a list of `{"path": "$.a.b", "message": "…"}`, one for each fault found."""

    type = "invalid_params"
    code = -32602

    def __init__(self, what: str, problems: list[dict[str, str]]) -> None:
        said = "; ".join(f"{p['path']}: {p['message']}" for p in problems)
        super().__init__(f"{what}: {said}", problems=problems)


class InvalidArguments(InvalidParams):
    type = "invalid_arguments"


class UnknownServer(CallerError):
    type = "unknown_server"
    code = -32602
    status = 404

    def __init__(self, server: str, known: list[str]) -> None:
        super().__init__(
            f"unknown server {server!r}; the catalog has: {', '.join(known) or 'no servers'}", server=server
        )


class UnknownTool(CallerError):
    type = "unknown_tool"
    code = -32602
    status = 404

    def __init__(self, server: str, tool: str, known: list[str]) -> None:
        super().__init__(
            f"server {server!r} has no tool {tool!r}; it has: {', '.join(known) or 'no tools'}",
            server=server,
            tool=tool,
        )


class Unauthenticated(CallerError):
    type = "unauthenticated"
    code = 401
    status = 401


class UnknownSession(CallerError):
    type = "unknown_session"
    code = 404
    status = 404

    def __init__(self, session: str) -> None:
        super().__init__(f"unknown session {session!r}; open one with session/open", session=session)


class UnknownJob(CallerError):
    type = "unknown_job"
    code = 404
    status = 404

    def __init__(self, job: str) -> None:
        super().__init__(f"unknown job {job!r} in this session", job=job)


class UnknownArtifact(CallerError):
    type = "unknown_artifact"
    code = 404
    status = 404

    def __init__(self, job: str) -> None:
        super().__init__(
            f"there is no such artifact of job {job!r}: it may have expired, its session may have been closed since,"
            " or the output was small enough to stand in the job's events",
            job=job,
        )


class UnknownDeadLetter(CallerError):
    type = "unknown_dead_letter"
    code = 404
    status = 404

    def __init__(self, letter: str) -> None:
        super().__init__(f"unknown dead letter {letter!r}", letter=letter)


class DeadLetterUnreadable(CallerError):
    type = "dead_letter_unreadable"
    code = 422
    status = 422

    def __init__(self, letter: str, why: str) -> None:
        super().__init__(
            f"no job can be made of dead letter {letter} ({why}); delete it when nobody needs its bytes", letter=letter
        )


class PayloadTooLarge(CallerError):
    type = "payload_too_large"
    code = 413
    status = 413

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"{size} bytes exceed the limit of {limit} bytes", size=size, limit=limit)


class FilesUnsupported(CallerError):
    type = "files_unsupported"
    code = 409
    status = 409

    def __init__(self, server: str, scope: str) -> None:
        super().__init__(
            f"server {server!r} has scope {scope!r}, so its containers keep no files of a session;"
            " only servers of scope 'session' have a files directory",
            server=server,
            scope=scope,
        )


class IdempotencyKeyReused(CallerError):
    type = "idempotency_key_reused"
    code = 422
    status = 422

    def __init__(self, key: str, job: str) -> None:
        super().__init__(
            f"idempotency key {key!r} was used for job {job} with another server, tool, arguments or artifact;"
            " use a new key",
            job=job,
        )


class RateLimited(CallerError):
    """`limit` calls may come at once, and `rate_per_s` after them; `depth` of the `limit` are used up."""

    type = "rate_limited"
    code = 429
    status = 429
    retryable = True

    def __init__(self, rate_per_s: float, limit: int, depth: int, retry_after_s: float) -> None:
        super().__init__(
            f"this tenant calls faster than {rate_per_s:g} times a second, and has used up the {limit} calls that it"
            f" may make at once; try again in {retry_after_s:g} s",
            limit=limit,
            depth=depth,
            rate_per_s=rate_per_s,
            retry_after_s=retry_after_s,
        )


class TooManyJobs(CallerError):
    type = "too_many_jobs"
    code = 429
    status = 429
    retryable = True

    def __init__(self, limit: int, depth: int, retry_after_s: float) -> None:
        super().__init__(
            f"this session has {depth} jobs that wait or run, and may have {limit} at once;"
            f" try again in {retry_after_s:g} s",
            limit=limit,
            depth=depth,
            retry_after_s=retry_after_s,
        )


class TooFewMessages(CallerError):
    type = "too_few_messages"
    code = 409
    status = 409

    def __init__(self, why: str) -> None:
        super().__init__(f"no dictionary can be made of the stored messages: {why}")


class OperatorsOnly(CallerError):
    type = "operators_only"
    code = 403
    status = 403

    def __init__(self, method: str) -> None:
        super().__init__(f"{method} is for the tenants that OPERATORS names")


class ConversationMoved(CallerError):
    type = "conversation_moved"
    code = 409
    status = 409

    def __init__(self, session: str, expected: int, last: int) -> None:
        super().__init__(
            f"the conversation of {session} has {last} messages, not {expected}: read it again",
            expected=expected,
            last=last,
        )


class QueueFull(CallerError):
    type = "queue_full"
    code = 429
    status = 429
    retryable = True

    def __init__(self, server: str, limit: int, retry_after_s: float) -> None:
        super().__init__(
            f"this session already has {limit} jobs queued on server {server!r}, which is the limit;"
            f" try again in {retry_after_s:g} s",
            server=server,
            limit=limit,
            depth=limit,
            retry_after_s=retry_after_s,
        )


class UnavailableError(ServiceError):
    type = "unavailable"
    code = 503
    status = 503
    retryable = True


class StoreUnavailable(UnavailableError):
    type = "store_unavailable"


class ServerNotReady(UnavailableError):
    type = "server_not_ready"

    def __init__(self, server: str, reason: str) -> None:
        super().__init__(f"server {server!r} is not ready: {reason}", server=server, reason=reason)


class ArtifactStoreFull(UnavailableError):
    type = "artifact_store_full"
    code = 507
    status = 507

    def __init__(self) -> None:
        super().__init__(
            "the store has no room for more artifacts: close sessions that are done with theirs, wait until some"
            " expire, or have the operator raise ARTIFACT_STORE_BYTES"
        )


class ConversationStoreFull(UnavailableError):
    """Nothing of the message is kept."""

    type = "conversation_store_full"
    code = 507
    status = 507

    def __init__(self) -> None:
        super().__init__(
            "the store of conversations has no room: nothing was added; delete conversations,"
            " or raise CONVERSATION_STORE_BYTES"
        )


class BrokenError(ServiceError):
    pass


class StreamConflict(BrokenError):
    type = "stream_conflict"

    def __init__(self, stream: str, differences: dict[str, tuple[Any, Any]]) -> None:
        said = ", ".join(f"{k} is {have!r}, wanted {want!r}" for k, (have, want) in differences.items())
        super().__init__(
            f"stream {stream} exists with other settings: {said}; change the setting that asks for this,"
            f" edit the stream (nats stream edit {stream}) or remove it",
            stream=stream,
        )


class NotClustered(BrokenError):
    type = "not_clustered"

    def __init__(self, replicas: int) -> None:
        super().__init__(
            f"{replicas} replicas are asked for, and the NATS server stands alone: set NATS_REPLICAS=1,"
            " or NATS_URL to the servers of a JetStream cluster",
            replicas=replicas,
        )


class UndecodableMessage(BrokenError):
    type = "undecodable_message"


class ConversationUnreadable(BrokenError):
    type = "conversation_unreadable"

    def __init__(self, key: str, revision: int, reason: str) -> None:
        super().__init__(
            f"conversations/{key} at revision {revision} cannot be read ({reason}): nothing was added or overwritten;"
            " read what is left of the conversation, then delete or truncate it",
            key=key,
            revision=revision,
            reason=reason,
        )


class Fenced(BrokenError):
    """The store refused an event because the job's last event is not the one that the writer knew of."""

    type = "fenced"

    def __init__(self, subject: str, expected: int) -> None:
        super().__init__(f"{subject}: the last event is not number {expected}", expected=expected)
