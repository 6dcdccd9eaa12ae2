"""A call in the foreground: shown while it runs, cancelled by Ctrl-C."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

from client.background import background
from client.event import JobResult, Position
from client.interrupt import Interrupt, cancel_after
from client.session import Session
from client.terminal import call_view


async def call(
    session: Session,
    server: str,
    tool: str,
    arguments: dict[str, Any],
    *,
    as_json: bool,
    idempotency_key: str | None = None,
    artifact: bool = False,
) -> JobResult:
    """Call a tool and show its events. Returns how the job ended.

    The first Ctrl-C cancels the job, and what comes until its end is still shown. With `artifact` its output is left
    to be downloaded.
    """
    with call_view(f"{server} {tool}", as_json=as_json, quiet=artifact) as view:
        calling = session.call(server, tool, arguments, idempotency_key=idempotency_key, artifact=artifact)
        async with background() as group, aclosing(calling) as events:
            async for event in events:
                if event.type == "queued":
                    group.create_task(cancel_after(Interrupt(), session, event.job))
                view.show(event)
                if event.terminal:
                    return JobResult.from_event(event)
    raise AssertionError("the events of a call end with its terminal event")


async def follow(session: Session, job: str, after: Position, *, as_json: bool) -> JobResult:
    """Show the events of a job that goes on without us. Returns how it ended."""
    with call_view(f"job {job}", as_json=as_json) as view:
        async with aclosing(session.follow(job, after=after)) as events:
            async for event in events:
                view.show(event)
                if event.terminal:
                    return JobResult.from_event(event)
    raise AssertionError("the events of a job end with its terminal event")
