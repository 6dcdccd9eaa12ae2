"""A running call's events on their way to a real store: bounded, in order, and never in the way of the call."""

from __future__ import annotations

import asyncio

from common.bus import Bus
from common.errors import Fenced
from common.output import OUTPUT_CHUNK_BYTES
from common.schema import Event
from tests.unit.common.bus_rig import DEADLINE_S, make_event, make_job
from worker.journal import Journal
from worker.outbox import WAITING_ITEMS, Outbox
from worker.output_stream import OutputLimits

SESSION = make_job().session


def outbox(bus: Bus, repeat_s: float = 60.0) -> Outbox:
    job = make_job(id="j1")
    return Outbox(bus, job, Journal(bus, job, attempt=1, last_seq=0), OutputLimits(), repeat_s)


async def stored(bus: Bus) -> list[Event]:
    return [found.event async for found in bus.replay_session(SESSION, 0)]


async def settle() -> None:
    """Let every task that can go on go on."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_a_call_tells_is_stored_in_its_order(bus: Bus) -> None:
    """`started` first, output and progress as they came; the pump ends when all is stored."""
    box = outbox(bus)
    box.started({"worker": "w"})
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        pump = tasks.create_task(box.pump())
        box.progress({"progress": 1})
        box.progress({"progress": 2})
        await box.output("stdout", b"a\n")
        await box.close()
    events = await stored(bus)

    assert pump.result() is None
    assert [(event.type, event.data) for event in events] == [
        ("started", {"worker": "w"}),
        ("progress", {"progress": 1}),
        ("progress", {"progress": 2}),
        ("output", {"stream": "stdout", "offset": 0, "text": "a\n"}),
    ]


async def test_progress_never_waits_and_never_piles_up(bus: Bus) -> None:
    """A tool that reports faster than the store takes it loses reports, not time."""
    box = outbox(bus)
    for number in range(10_000):
        box.progress({"progress": number})
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(box.pump())
        await box.close()
    told = [event.data["progress"] for event in await stored(bus)]

    assert 0 < len(told) < WAITING_ITEMS
    assert told == sorted(told)


async def test_progress_leaves_room_for_the_end(bus: Bus) -> None:
    """However much was reported, closing does not wait for the store."""
    box = outbox(bus)
    for number in range(100):
        box.progress({"progress": number})
    async with asyncio.timeout(DEADLINE_S):
        await box.close()


async def test_after_a_fence_no_writer_is_stuck_and_nothing_more_is_stored(bus: Bus) -> None:
    """The job is another worker's: its tool is stopped, and may write until then."""
    taken = await bus.publish_event(make_event("j1", "started", worker="other"), expected=0)
    box = outbox(bus)
    box.started({"worker": "late"})
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        writer = tasks.create_task(box.output("stdout", b"x" * 64 * OUTPUT_CHUNK_BYTES))
        await settle()
        pump = tasks.create_task(box.pump())
        await asyncio.wait({writer, pump})
        for _ in range(3 * WAITING_ITEMS):
            await box.output("stdout", b"y" * OUTPUT_CHUNK_BYTES)
            box.progress({"progress": 1})
        await box.close()

    assert isinstance(pump.result(), Fenced)
    last = await bus.last_event(SESSION, "j1")
    assert last is not None
    assert last.seq == taken


async def test_the_first_event_is_settled_when_it_is_stored(bus: Bus) -> None:
    """Not before: a tool with effects waits for it."""
    box = outbox(bus)
    box.started({})
    await settle()
    assert not box.started_settled.is_set()
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(box.pump())
        await box.started_settled.wait()
        assert [event.type for event in await stored(bus)] == ["started"]
        await box.close()


async def test_the_first_event_is_settled_when_it_never_will_be_stored(bus: Bus) -> None:
    """Whoever waits for it learns from the pump that the job is another's."""
    await bus.publish_event(make_event("j1", "started"), expected=0)
    box = outbox(bus)
    box.started({})
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        pump = tasks.create_task(box.pump())
        await box.started_settled.wait()
        await settle()

        assert pump.done()


async def test_a_report_that_no_event_can_hold_is_left_out(bus: Bus) -> None:
    """It is the tool's fault, and costs neither the call nor the reports after it."""
    box = outbox(bus)
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        pump = tasks.create_task(box.pump())
        box.progress({"progress": 1, "message": "x" * bus.max_payload})
        box.progress({"progress": 2})
        await box.close()

    assert pump.result() is None
    assert [event.data for event in await stored(bus)] == [{"progress": 2}]


async def test_a_report_with_half_a_character_is_stored(bus: Bus) -> None:
    """As JSON of some servers has it where they cut a text."""
    box = outbox(bus)
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(box.pump())
        box.progress({"progress": 1, "message": "cut \ud83d"})
        await box.close()

    assert [event.data["message"] for event in await stored(bus)] == ["cut \ufffd"]


async def test_a_silent_attempt_says_again_that_it_has_started(bus: Bus) -> None:
    """Its first `started` will be past the resume window one day; the repeats say since when."""
    box = outbox(bus, repeat_s=0.05)
    box.started({"worker": "w"})
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(box.pump())
        async with bus.subscribe_session(SESSION, 0) as feed:
            seen = [(await anext(events)).event for events in [aiter(feed)] for _ in range(3)]
        await box.close()

    assert [event.type for event in seen] == ["started"] * 3
    assert seen[0].data == {"worker": "w"}
    assert seen[1].data == seen[2].data
    assert seen[1].data["since_ms"] <= seen[1].time_ms


async def test_a_call_that_goes_to_another_container_is_told_before_it_begins(bus: Bus) -> None:
    """By that event a lost worker's call is found; it is dated by the attempt's own begin."""
    box = outbox(bus)
    box.started({"container": "c1"})
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(box.pump())
        await box.started_elsewhere({"container": "c2"})
        first, second = await stored(bus)
        await box.close()

    assert first.data == {"container": "c1"}
    assert second.type == "started"
    assert second.data == {"container": "c2", "since_ms": second.data["since_ms"]}
    assert second.data["since_ms"] <= first.time_ms


async def test_a_call_of_a_lost_job_is_told_nowhere(bus: Bus) -> None:
    """The store has refused `started`: nobody waits for what will never be stored."""
    await bus.publish_event(make_event("j1", "started"), expected=0)
    box = outbox(bus)
    box.started({"container": "c1"})
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        pump = tasks.create_task(box.pump())
        await box.started_elsewhere({"container": "c2"})

    assert isinstance(pump.result(), Fenced)
    assert len(await stored(bus)) == 1


async def test_a_report_that_comes_after_the_end_does_not_hold_the_end_up(bus: Bus) -> None:
    """The pump sees both at once."""
    box = outbox(bus)
    box.started({})
    await box.close()
    box.progress({"progress": 1})
    async with asyncio.timeout(DEADLINE_S):
        assert await box.pump() is None
