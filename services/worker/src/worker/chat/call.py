"""A turn as an attempt sees it: a call, and the place where it runs, which is this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from common.job_errors import JobError
from common.log import get
from common.schema import Job
from worker.chat.turn import TakenOver, Turn
from worker.errors import ServerGone
from worker.executors.contract import Call
from worker.models.contract import ChatModel
from worker.models.errors import NoModel
from worker.outbox import Outbox

_log = get(__name__)


class TurnCall:
    """A `Call`."""

    def __init__(self, turn: Turn, outbox: Outbox, tasks: asyncio.TaskGroup) -> None:
        self._turn = turn
        self._outbox = outbox
        self.answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.answer.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._task = tasks.create_task(self._run())

    async def _run(self) -> None:
        try:
            result = await self._turn.run()
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is the attempt's end and not the worker's
            self._fail(_first(exc))
        else:
            await self._outbox.end_output()
            self.answer.set_result(result)

    def _fail(self, failure: BaseException) -> None:
        if isinstance(failure, TakenOver):
            return  # the attempt hears it from the outbox
        if not isinstance(failure, JobError):
            _log.error("turn failed in the worker", exc_info=failure)
        self.answer.set_exception(failure)

    async def stop(self) -> bool:
        await self.abandon()
        if not self._outbox.ended and not self.answer.done():
            await self._turn.wind_up()
        return True

    async def abandon(self) -> None:
        """Let another attempt go on with it: its calls are left alone."""
        self._task.cancel()
        await asyncio.wait({self._task})


BeginTurn = Callable[[ChatModel, Job, Outbox], TurnCall]


class TurnPlace:
    """A `Place`."""

    def __init__(self, model: ChatModel | None, begin: BeginTurn) -> None:
        self._model = model
        self._begin = begin
        self._call: TurnCall | None = None

    def described(self) -> dict[str, Any]:
        return self.conditions()

    def conditions(self) -> dict[str, Any]:
        return {"model": self._model.name if self._model else ""}

    async def begin(self, job: Job, outbox: Outbox) -> Call:
        if self._model is None:
            raise NoModel
        self._call = self._begin(self._model, job, outbox)
        return self._call

    async def exchange(self) -> None:
        raise AssertionError("a turn that could not begin is not begun elsewhere")

    async def end(self) -> None:
        raise AssertionError("a turn can always be stopped")

    async def post_mortem(self, gone: ServerGone) -> ServerGone:
        return gone

    async def let_go(self) -> None:
        if self._call is not None:
            await self._call.abandon()


def _first(exc: BaseException) -> BaseException:
    """The error that a group of tasks ended with."""
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return exc
