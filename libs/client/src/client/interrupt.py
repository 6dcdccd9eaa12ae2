"""Ctrl-C while something runs that can be cancelled."""

from __future__ import annotations

import asyncio
import signal

from client.errors import ClientError
from client.session import Session
from client.terminal import complain


class Interrupt:
    """Takes the next Ctrl-C in place of its usual effect. The one after that has it again."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._usual = signal.getsignal(signal.SIGINT)
        self.came = asyncio.Event()
        self._loop.add_signal_handler(signal.SIGINT, self._on_interrupt)

    def _on_interrupt(self) -> None:
        self.restore()
        self.came.set()

    def restore(self) -> None:
        if self._loop.remove_signal_handler(signal.SIGINT):
            signal.signal(signal.SIGINT, self._usual)


async def cancel_after(interrupt: Interrupt, session: Session, job: str) -> None:
    """Cancel a job as soon as the interrupt comes. Runs until cancelled otherwise."""
    try:
        await interrupt.came.wait()
    finally:
        interrupt.restore()  # the job is over: what follows it may be interrupted as everything else
    complain("cancelling; Ctrl-C again leaves without waiting for the end")
    try:
        await session.cancel(job)
    except ClientError as exc:
        complain(f"not cancelled: {exc}")
