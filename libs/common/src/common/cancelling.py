"""The end of a job that somebody does not want any more: now where it waits, through its worker where it runs."""

from __future__ import annotations

from typing import Final

from common.bus import Bus
from common.ending import Ending
from common.errors import Fenced, StoreUnavailable, UnknownJob
from common.feed import StoredEvent
from common.job_end import end_job, facts_of_queued
from common.job_line import JobFacts
from common.job_state import Signal, State, state_after, step
from common.log import get
from common.schema import EventType

_log = get(__name__)

CANCEL_TRIES: Final = 5


async def cancel_job(bus: Bus, session: str, job: str) -> tuple[EventType, bool]:
    """The type of the job's newest event after the attempt, and whether there was something to cancel.

    Raises:
        UnknownJob: if the session has none of that id, or its events are past the resume window.
        StoreUnavailable: if the store did not confirm.
    """
    for _ in range(CANCEL_TRIES):
        newest = await bus.last_event(session, job)
        if newest is None:
            raise UnknownJob(job)
        transition = step(state_after(newest.event.type), Signal.CANCEL)
        if transition.stores is None:
            return newest.event.type, False
        if transition.to is State.RUNNING:
            # Its worker ends it, when it has proof that nothing of it runs.
            await bus.request_cancel(session, job, newest.event.attempt)
            return newest.event.type, True
        try:
            await _end_waiting(bus, newest)
        except Fenced:
            continue  # a worker's event came first: the fence has decided
        return "result", True
    raise StoreUnavailable(f"job {job} changes too fast to be cancelled: try again")


async def _end_waiting(bus: Bus, newest: StoredEvent) -> None:
    """Store `cancelled` behind the newest event of a job that does not run, then take it out of the queue.

    Raises:
        Fenced: if another event came in between.
    """
    event = newest.event
    queued = await bus.queued_event(event.session, event.job)
    if queued is None:
        facts = JobFacts(event.session, event.job, server="")
    else:
        facts = await facts_of_queued(bus, queued.event)
    await end_job(bus, facts, newest, Ending("cancelled"))
    if not facts.server:
        return  # past the resume window; the worker that gets it will drop it
    try:
        await bus.withdraw_job(facts.server, event.session, event.job)
    except StoreUnavailable as exc:
        # It has ended all the same: the worker that gets it is refused its `started` by the fence.
        _log.info("cancelled job left in the queue", session=event.session, job=event.job, reason=exc.message)
