"""The one line of the log that a job leaves, and the metrics of its end.

Whoever stored the terminal event tells it, at once: as there is one such event, there is one line. A process that dies
between the two, or does not hear that it was stored, leaves none; the event itself is what counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from common import metrics
from common.log import get, job_context
from common.schema import Job, now_ms

_log = get(__name__)

_STAGES: Final = {
    "queue_ms": metrics.JOB_QUEUE_SECONDS,
    "acquire_ms": metrics.JOB_ACQUIRE_SECONDS,
    "tool_ms": metrics.JOB_TOOL_SECONDS,
}
_NOT_RUN: Final[Mapping[str, float]] = {}


@dataclass(frozen=True)
class JobFacts:
    """What is known of a job that has ended: texts that nobody knows (any more) are empty."""

    session: str
    job: str
    server: str
    tool: str = ""
    tenant: str = ""
    created_ms: int | None = None
    traceparent: str | None = None

    @classmethod
    def of(cls, job: Job, traceparent: str | None) -> JobFacts:
        return cls(job.session, job.id, job.server, job.tool, job.tenant, job.created_ms, traceparent)


def tell_job_ended(
    facts: JobFacts, attempt: int, outcome: str, error: str | None, timings: Mapping[str, float] = _NOT_RUN
) -> None:
    """`timings` has milliseconds by stage, where an attempt was made here."""
    metrics.JOBS_ENDED.labels(facts.server, outcome).inc()
    times = {stage: timings.get(stage) for stage in _STAGES}
    for stage, spent_ms in times.items():
        if spent_ms is not None:
            _STAGES[stage].labels(facts.server).observe(spent_ms / 1000)
    total_ms = None if facts.created_ms is None else max(0, now_ms() - facts.created_ms)
    if total_ms is not None:
        metrics.JOB_TOTAL_SECONDS.labels(facts.server).observe(total_ms / 1000)
    _log.info(
        "job ended",
        **job_context(session=facts.session, job=facts.job, attempt=attempt, traceparent=facts.traceparent),
        tenant=facts.tenant,
        server=facts.server,
        tool=facts.tool,
        outcome=outcome,
        error=error,
        **times,
        total_ms=total_ms,
    )
