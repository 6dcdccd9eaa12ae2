"""The end of a job that no worker runs: its terminal event, behind the event that it was decided by."""

from __future__ import annotations

from common import metrics
from common.bus import Bus
from common.ending import Ending
from common.feed import StoredEvent
from common.log import get
from common.schema import Event, now_ms

_log = get(__name__)


async def end_job(bus: Bus, session: str, job: str, server: str, newest: StoredEvent | None, ending: Ending) -> None:
    """Store the terminal event. Its message may still be in the queue then: that is the caller's to take out.

    Raises:
        Fenced: if another event than `newest` is the job's last by now; nothing was changed.
        StoreUnavailable: if the store did not confirm. It may be repeated.
    """
    event = Event(
        job=job,
        session=session,
        attempt=newest.event.attempt if newest else 0,
        type="result",
        time_ms=now_ms(),
        data=ending.as_data(),
    )
    expected = newest.fence if newest else 0
    await bus.publish_event(event, expected=expected, msg_id=f"{job}.{expected}.{ending.outcome}")
    metrics.JOBS_ENDED.labels(server, ending.outcome).inc()
    error = ending.error.type if ending.error else None
    _log.info("job ended", session=session, job=job, server=server, outcome=ending.outcome, error=error)
