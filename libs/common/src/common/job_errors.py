"""How a job can end other than by its tool's answer, where more than one service ends it so.

ServiceError                    (common.errors)
└── JobError                    stands in the job's `result` event, with its `outcome`
    ├── QueueTimeout            timed_out: schedule-to-start
    ├── OutcomeUnknown          outcome_unknown
    ├── NotAccepted             failed
    ├── ServerRemoved           dead_lettered
    └── …                       what only a worker meets: worker.errors
"""

from __future__ import annotations

from typing import ClassVar

from common.errors import ServiceError
from common.schema import Outcome


class JobError(ServiceError):
    outcome: ClassVar[Outcome] = "failed"


class QueueTimeout(JobError):
    type = "queue_timeout"
    outcome = "timed_out"
    retryable = True

    def __init__(self, waited_ms: int) -> None:
        super().__init__(f"the job waited {waited_ms} ms for a worker and did not start", waited_ms=waited_ms)


class OutcomeUnknown(JobError):
    """The worker's own heartbeat stopped (`ACK_WAIT_S`), and nobody can tell what became of the call."""

    type = "outcome_unknown"
    outcome = "outcome_unknown"

    def __init__(self, attempt: int, worker: str, started_ms: int, why: str, *, cancel_requested: bool = False) -> None:
        super().__init__(
            f"attempt {attempt} had started on worker {worker} when that worker was lost; {why}:"
            " it may or may not have taken effect",
            attempt=attempt,
            worker=worker,
            started_ms=started_ms,
            cancel_requested=cancel_requested,
        )


class NotAccepted(JobError):
    """The `queued` event of a call that was never accepted: its gateway was lost between the two."""

    type = "not_accepted"
    retryable = True

    def __init__(self) -> None:
        super().__init__("the call was not accepted: the store has no job for it, so nothing of it ran")


class ServerRemoved(JobError):
    type = "server_removed"
    outcome = "dead_lettered"

    def __init__(self, server: str) -> None:
        super().__init__(f"server {server!r} was removed from the catalog while the job waited", server=server)
