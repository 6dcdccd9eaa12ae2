"""What waits for a reader: bounded in events and in bytes."""

from __future__ import annotations

import asyncio

from client.event import Event, Position
from client.reader import READ_AHEAD, READ_AHEAD_BYTES, Reader

DEADLINE_S = 20.0
CHUNK = "x" * 128 * 1024


def output(seq: int, text: str = CHUNK) -> Event:
    return Event("s", "j", seq, 1, "output", 0, {"stream": "stdout", "offset": 0, "text": text})


async def test_a_reader_that_is_too_many_bytes_late_is_behind() -> None:
    """Long before it is too many events late; what waits is read first."""
    reader = Reader("j", Position("e", 0))
    for seq in range(1, READ_AHEAD):
        reader.offer(output(seq))
    waiting = reader.position.seq

    assert reader.behind
    assert READ_AHEAD_BYTES < waiting * len(CHUNK) <= READ_AHEAD_BYTES + len(CHUNK)
    assert [(await reader.get()).seq for _ in range(waiting)] == list(range(1, waiting + 1))
    assert reader.needs_feed


async def test_small_events_are_bounded_in_number() -> None:
    """As they take more than their bytes."""
    reader = Reader("j", Position("e", 0))
    for seq in range(1, READ_AHEAD + 10):
        reader.offer(output(seq, "x"))

    assert reader.behind
    assert reader.position.seq == READ_AHEAD


async def test_a_readers_own_feed_waits_for_it() -> None:
    """So it holds no more than another, and loses nothing."""
    reader = Reader("j", Position("e", 0), behind=True)
    count = 3 * READ_AHEAD_BYTES // len(CHUNK)

    async def feed() -> None:
        for seq in range(1, count + 1):
            await reader.put(output(seq))

    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        feeding = tasks.create_task(feed())
        for _ in range(5):
            await asyncio.sleep(0)
        held = reader.position.seq
        read = [(await reader.get()).seq for _ in range(count)]

    assert feeding.done()
    assert held * len(CHUNK) <= READ_AHEAD_BYTES + len(CHUNK)
    assert read == list(range(1, count + 1))
