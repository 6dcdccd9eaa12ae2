"""The end of a job that no worker runs: its terminal event, behind the event that it was decided by."""

from __future__ import annotations

from common.bus import Bus
from common.ending import Ending
from common.feed import StoredEvent
from common.job_line import JobFacts, tell_job_ended
from common.schema import Event, now_ms


async def end_job(bus: Bus, facts: JobFacts, newest: StoredEvent | None, ending: Ending) -> None:
    """Store the terminal event, and tell it. Its message may still be in the queue: that is the caller's to take out.

    Raises:
        Fenced: if another event than `newest` is the job's last by now; nothing was changed.
        StoreUnavailable: if the store did not confirm. It may be repeated.
    """
    event = Event(
        job=facts.job,
        session=facts.session,
        attempt=newest.event.attempt if newest else 0,
        type="result",
        time_ms=now_ms(),
        data=ending.as_data(),
    )
    expected = newest.fence if newest else 0
    await bus.publish_event(event, expected=expected, msg_id=f"{facts.job}.{expected}.{ending.outcome}")
    tell_job_ended(facts, event.attempt, ending.outcome, ending.error.type if ending.error else None)


async def facts_of_queued(bus: Bus, queued: Event) -> JobFacts:
    """What is known of a job of which only its first event is at hand.

    Raises:
        StoreUnavailable: if the store does not answer.
    """
    return JobFacts(
        session=queued.session,
        job=queued.job,
        server=str(queued.data.get("server", "")),
        tool=str(queued.data.get("tool", "")),
        tenant=await bus.tenant_of(queued.session),
        created_ms=queued.time_ms,
    )
