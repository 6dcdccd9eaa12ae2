"""What the spans of a job's message say: OpenTelemetry's conventions for messaging."""

from __future__ import annotations

from typing import Literal

from common.schema import Job
from common.subjects import jobs


def job_attributes(job: Job, operation: Literal["send", "process"]) -> dict[str, str | int | bool]:
    """Ids and names; never arguments."""
    return {
        "messaging.system": "nats",
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": jobs(job.server, job.session),
        "messaging.destination.template": jobs(job.server, "{session}"),
        "messaging.message.id": job.id,
        "messaging.message.conversation_id": job.session,
        "gen_ai.tool.name": job.tool,
    }
