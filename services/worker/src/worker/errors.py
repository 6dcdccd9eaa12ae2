"""How a job can end on a worker other than by the tool's answer.

JobError                        (common.job_errors) stands in the job's `result` event, with its `outcome`
├── ContainerStartFailed        failed: the image, the command or the engine's answer to them
├── HandshakeFailed             failed: the server is no MCP server, or too slow
├── AttemptLost                 what ran it is lost; where the job may be repeated, another attempt follows
│   └── ServerGone              outcome_unknown: the server ended during the call
├── ToolProtocolError           failed: the server answered with a JSON-RPC error
├── ResultTooLarge              failed
├── OutputTooLarge              failed: it wrote more than a job may
├── AnswerNotKept               failed: the worker has no room for its answer
├── OutputStoreFull             failed: the store has no room for what it writes
├── OutputNotStored             failed: the store does not take it
├── EngineUnavailable           failed: the Docker Engine does not answer
├── JobTimeout                  timed_out: start-to-close
├── HeartbeatTimeout            timed_out: the tool told nothing for too long
└── TooManyAttempts             dead_lettered
PoolExhausted                   no container came free in time: the job goes back to the queue, unharmed
"""

from __future__ import annotations

from typing import Any

from common.job_errors import JobError
from common.object_writer import GIVE_UP_S


class ContainerStartFailed(JobError):
    """`retryable` is true: nothing of the job ran."""

    type = "container_start_failed"
    retryable = True


class HandshakeFailed(JobError):
    type = "handshake_failed"
    retryable = True


class AttemptLost(JobError):
    pass


class ServerGone(AttemptLost):
    """During a call of a tool that may be repeated, or before the call reached it, another attempt follows."""

    type = "server_gone"
    outcome = "outcome_unknown"

    def __init__(self, why: str, *, exit_code: int | None = None, oom_killed: bool = False, stderr: str = "") -> None:
        super().__init__(why, exit_code=exit_code, oom_killed=oom_killed, stderr=stderr)


class ToolProtocolError(JobError):
    type = "tool_protocol_error"

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(
            str(error.get("message", "the server gave no message")),
            code=error.get("code"),
            data=error.get("data"),
        )


class ResultTooLarge(JobError):
    type = "result_too_large"

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"the answer has {size} bytes; the limit is {limit}", size=size, limit=limit)


class OutputTooLarge(JobError):
    """`size` is that of an MCP server's answer, which cannot be used in part."""

    type = "output_too_large"

    def __init__(self, limit: int, size: int | None = None) -> None:
        if size is None:
            said = f"the job wrote more than {limit} bytes and was stopped; what it had written is kept"
            facts = {"limit": limit}
        else:
            said = f"the answer has {size} bytes; the limit is {limit}, so nothing of it is kept"
            facts = {"size": size, "limit": limit}
        super().__init__(f"{said}. Have it write less, or the operator raise MAX_OUTPUT_BYTES", **facts)


class AnswerNotKept(JobError):
    type = "answer_not_kept"
    retryable = True

    def __init__(self, size: int, why: str) -> None:
        super().__init__(
            f"the answer could not be kept beyond its first {size} bytes: {why}; the folder for temporary files of the"
            " worker needs more room",
            size=size,
        )


class OutputStoreFull(JobError):
    """Its chunks are removed again, so that other jobs have room."""

    type = "output_store_full"
    retryable = True

    def __init__(self) -> None:
        super().__init__(
            "the store has no room for what the job writes, and it was stopped: close sessions that are done with"
            " their artifacts, wait until some expire, or have the operator raise ARTIFACT_STORE_BYTES"
        )


class OutputNotStored(JobError):
    type = "output_not_stored"
    retryable = True

    def __init__(self) -> None:
        super().__init__(
            f"the store has not taken what the job writes for {GIVE_UP_S:g} s, and the job was stopped:"
            " the disk of a NATS server may be full, which an operator must look at"
        )


class EngineUnavailable(JobError):
    type = "engine_unavailable"
    retryable = True


class JobTimeout(JobError):
    type = "job_timeout"
    outcome = "timed_out"

    def __init__(self, timeout_ms: int) -> None:
        super().__init__(
            f"the job ran longer than its timeout of {timeout_ms} ms and was stopped", timeout_ms=timeout_ms
        )


class HeartbeatTimeout(JobError):
    type = "heartbeat_timeout"
    outcome = "timed_out"

    def __init__(self, heartbeat_ms: int) -> None:
        super().__init__(
            f"the tool told nothing, neither progress nor output, for {heartbeat_ms} ms and was stopped",
            heartbeat_ms=heartbeat_ms,
        )


class TooManyAttempts(JobError):
    """Every attempt lost its worker or its server; `cause` is the error of the last one, if that was told."""

    type = "too_many_attempts"
    outcome = "dead_lettered"

    def __init__(self, attempts: int, cause: JobError | None = None) -> None:
        super().__init__(
            f"the job was given up on after {attempts} attempts"
            + (f"; the last one failed: {cause.message}" if cause else ""),
            attempts=attempts,
            cause=cause.as_dict() if cause else None,
        )


class PoolExhausted(Exception):
    """Every container of the pool is in use and none came free in time."""
