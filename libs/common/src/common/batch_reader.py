"""Batched direct gets: many stored messages for one request, without a consumer (NATS ADR-31)."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg

from common import headers


@dataclass
class Batch:
    keep: Callable[[Msg], bool] | None
    ended: asyncio.Future[dict[str, str]]
    found: deque[tuple[int, Msg]] = field(default_factory=deque)
    """With their numbers, in order."""
    refused: int = 0
    """Bytes of the first one that `keep` did not want; 0 if it took all."""

    @property
    def end(self) -> dict[str, str]:
        """The headers of the message that ended it."""
        return self.ended.result()

    @property
    def more(self) -> bool:
        """There are more messages behind those that were found."""
        return self.refused > 0 or (bool(self.found) and int(self.end.get(headers.NUM_PENDING, 0)) > 0)


class BatchReader:
    """One connection's batches, all over one subscription: one of its own for each would cost two more messages and a
    task. `open()` comes first."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._inbox = client.new_inbox()
        self._under_way: dict[str, Batch] = {}
        self._count = 0

    async def open(self) -> None:
        await self._client.subscribe(f"{self._inbox}.*", cb=self._on_message)

    async def read(
        self, subject: str, request: dict[str, Any], timeout_s: float, keep: Callable[[Msg], bool] | None = None
    ) -> Batch:
        """Messages up to the first that `keep` does not want.

        Raises:
            TimeoutError: if the end does not come in time.
            nats.errors.Error: if the request cannot be sent.
        """
        self._count += 1
        token = str(self._count)
        batch = self._under_way[token] = Batch(keep, asyncio.get_running_loop().create_future())
        try:
            await self._client.publish(subject, json.dumps(request).encode(), reply=f"{self._inbox}.{token}")
            async with asyncio.timeout(timeout_s):
                await batch.ended
        finally:
            del self._under_way[token]
        return batch

    async def _on_message(self, msg: Msg) -> None:
        batch = self._under_way.get(msg.subject.rsplit(".", 1)[-1])
        if batch is None or batch.ended.done() or msg.headers is None:
            return
        if headers.STATUS in msg.headers:
            batch.ended.set_result(msg.headers)
        elif not batch.refused:
            if batch.keep is None or batch.keep(msg):
                batch.found.append((int(msg.headers[headers.SEQUENCE]), msg))
            else:
                batch.refused = len(msg.data)
