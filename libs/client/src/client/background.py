"""Tasks that work beside a body of code and end with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class _Over(Exception):
    """Ends what still runs: TaskGroup of Python 3.11 has no other way to be cancelled from inside."""


@asynccontextmanager
async def background() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group whose tasks are cancelled, and have ended, when the body is left.

    What the body raises comes out as it is and not inside of a group, so that callers can catch it by its
    class. A task that fails cancels the body, as in any task group.
    """
    failure: Exception | None = None
    owner = asyncio.current_task()
    assert owner is not None, "a task group needs one"
    cancels = owner.cancelling()
    try:
        async with asyncio.TaskGroup() as group:
            try:
                yield group
            except Exception as exc:  # noqa: BLE001 - raised again below, outside of the group
                failure = exc
            raise _Over
    except* _Over:
        pass
    if owner.cancelling() > cancels:  # while the tasks ended, which the group keeps to itself
        raise asyncio.CancelledError
    if failure is not None:
        raise failure
