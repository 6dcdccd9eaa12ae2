"""A job whose id may have been accepted before: it is accepted once, whoever asks again."""

from __future__ import annotations

from typing import Final

from common.bus import Bus
from common.feed import StoredEvent
from common.schema import Job

HALF_ACCEPTED_MS: Final = 60_000
"""A job this young is stored once more when its call is repeated; below the store's own memory of ids (120 s)."""


async def accept_once(bus: Bus, job: Job, traceparent: str | None = None) -> int:
    """Returns the number of its `queued` event.

    Raises:
        QueueFull, StoreUnavailable: as `Bus.enqueue_job()`.
    """
    known = await bus.queued_event(job.session, job.id)
    if known is not None and is_whole(known, job):
        return known.seq
    return (await bus.enqueue_job(job, traceparent)).seq


def is_whole(queued: StoredEvent, job: Job) -> bool:
    """Is the job of this event in the queue for sure, or was? One so young may be half accepted, by a process that
    died: it is stored once more then, and the store keeps one of it."""
    return job.created_ms - queued.event.time_ms > HALF_ACCEPTED_MS
