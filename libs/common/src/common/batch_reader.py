"""Batched direct gets: many stored messages for one request, without a consumer (NATS ADR-31)."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg

from common import headers


@dataclass
class _Batch:
    ended: asyncio.Future[dict[str, str]]
    found: list[tuple[int, Msg]] = field(default_factory=list)


class BatchReader:
    """One connection's batches, all over one subscription: one of its own for each would cost two more messages and a
    task. `open()` comes first."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._inbox = client.new_inbox()
        self._under_way: dict[str, _Batch] = {}
        self._count = 0

    async def open(self) -> None:
        await self._client.subscribe(f"{self._inbox}.*", cb=self._on_message)

    async def read(
        self, subject: str, request: dict[str, Any], timeout_s: float
    ) -> tuple[list[tuple[int, Msg]], dict[str, str]]:
        """Messages with their numbers, and the headers of the batch's end.

        Raises:
            TimeoutError: if the end does not come in time.
            nats.errors.Error: if the request cannot be sent.
        """
        self._count += 1
        token = str(self._count)
        batch = self._under_way[token] = _Batch(asyncio.get_running_loop().create_future())
        try:
            await self._client.publish(subject, json.dumps(request).encode(), reply=f"{self._inbox}.{token}")
            async with asyncio.timeout(timeout_s):
                end = await batch.ended
        finally:
            del self._under_way[token]
        return batch.found, end

    async def _on_message(self, msg: Msg) -> None:
        batch = self._under_way.get(msg.subject.rsplit(".", 1)[-1])
        if batch is None or batch.ended.done():
            return
        fields = msg.headers or {}
        if headers.STATUS in fields:
            batch.ended.set_result(fields)
        else:
            batch.found.append((int(fields[headers.SEQUENCE]), msg))
