"""Keeping deliveries alive: a job that runs, or waits here for its turn, is told to the store to be in hand."""

from __future__ import annotations

import asyncio

from common.consumer import Delivery


class Heartbeat:
    """The deliveries that this worker answers for. `run()` must run."""

    def __init__(self, ack_wait_s: float) -> None:
        self._period_s = ack_wait_s / 3
        self._held: dict[str, Delivery] = {}

    def hold(self, delivery: Delivery) -> None:
        """A later delivery of the same job takes the place of the earlier one, whose ack subject is void."""
        self._held[delivery.job.id] = delivery

    def drop(self, job: str) -> None:
        self._held.pop(job, None)

    def current(self, job: str) -> Delivery | None:
        return self._held.get(job)

    async def hand_back(self, delivery: Delivery) -> None:
        self.drop(delivery.job.id)
        await delivery.hand_back()

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._period_s)
            for delivery in list(self._held.values()):
                await delivery.in_progress()
