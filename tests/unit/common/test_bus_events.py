"""Events in the store: fenced, deduplicated, bounded, read back."""

from __future__ import annotations

import pytest

from common import subjects
from common.allowance import Allowance
from common.bus import Bus
from common.errors import Fenced, PayloadTooLarge, StoreUnavailable
from common.feed import StoredEvent
from common.nats_connection import REPLAY_BATCH, REPLAY_BATCH_BYTES
from common.streams import SESSIONS
from tests.unit.common.bus_rig import SESSION, be_impatient, counted, make_event, store_events, store_paused


async def replayed(bus: Bus, session: str = SESSION, after: int = 0) -> list[StoredEvent]:
    return [stored async for stored in bus.replay_session(session, after)]


async def test_an_event_is_stored_only_behind_the_one_that_its_writer_knows(bus: Bus) -> None:
    """Of two writers that know the same last event the store accepts one."""
    first = await bus.publish_event(make_event(), expected=0)
    second = await bus.publish_event(make_event(), expected=first)
    for stale in (0, first, second + 1):
        with pytest.raises(Fenced) as refused:
            await bus.publish_event(make_event(), expected=stale)
        assert refused.value.data == {"expected": stale}

    assert [stored.seq for stored in await replayed(bus)] == [first, second]


async def test_the_fence_of_a_job_is_no_other_jobs(bus: Bus) -> None:
    """Each is numbered behind its own events, whatever lies between."""
    first = await bus.publish_event(make_event("j1"), expected=0)
    await bus.publish_event(make_event("j2"), expected=0)
    await bus.publish_event(make_event("j1", session="s2"), expected=0)

    assert await bus.publish_event(make_event("j1"), expected=first) == first + 3


async def test_a_repeated_publish_is_answered_with_the_first_ones_number(bus: Bus) -> None:
    """So a lost acknowledgement costs neither a second event nor the fence."""
    event = make_event()
    first = await bus.publish_event(event, expected=0, msg_id="j1.1")
    again = await bus.publish_event(event, expected=0, msg_id="j1.1")
    second = await bus.publish_event(event, expected=first, msg_id="j1.2")
    once_more = await bus.publish_event(event, expected=first, msg_id="j1.2")

    assert (again, once_more) == (first, second)
    assert [stored.seq for stored in await replayed(bus)] == [first, second]


async def test_an_event_of_another_id_is_no_repeat(bus: Bus) -> None:
    """What somebody else has stored in between is a fence, whatever it says."""
    await bus.publish_event(make_event(), expected=0, msg_id="j1.1")
    for msg_id in ("j1.2", None):
        with pytest.raises(Fenced):
            await bus.publish_event(make_event(), expected=0, msg_id=msg_id)

    assert len(await replayed(bus)) == 1


async def test_a_fence_whose_event_is_past_the_resume_window_is_a_fence(bus: Bus) -> None:
    """A repeat of an event that is stored no more is not told from a foreign one."""
    first = await bus.publish_event(make_event(), expected=0, msg_id="j1.1")
    await bus.client.jetstream().purge_stream(SESSIONS)
    with pytest.raises(Fenced):
        await bus.publish_event(make_event(), expected=first, msg_id="j1.2")


async def test_an_event_that_no_message_can_hold_is_refused_before_it_is_sent(bus: Bus) -> None:
    """With its size and the limit; up to the limit it is stored."""
    at_limit = make_event(text="")
    room = bus.max_event_bytes - len(at_limit.encode()) - 4  # a long text has four more bytes of length
    seq = await bus.publish_event(make_event(text="x" * room), expected=0)
    with pytest.raises(PayloadTooLarge) as refused:
        await bus.publish_event(make_event(text="x" * (room + 1)), expected=seq)

    assert refused.value.data == {"size": bus.max_event_bytes + 1, "limit": bus.max_event_bytes}
    assert bus.max_event_bytes < bus.max_payload


async def test_the_last_event_of_a_job_and_its_queued_one_are_read_directly(bus: Bus) -> None:
    """None where there is none, also if the session has others; `queued` is the last until another one is there."""
    await bus.publish_event(make_event("other"), expected=0)
    assert await bus.queued_event(SESSION, "j1") is None
    assert await bus.last_event(SESSION, "j1") is None
    queued, started = make_event("j1", "queued", attempt=0), make_event("j1", "started")
    first = await bus.publish_event(queued, expected=0)
    assert await bus.last_event(SESSION, "j1") == (first, queued)
    last = await bus.publish_event(started, expected=0)

    assert await bus.queued_event(SESSION, "j1") == (first, queued)
    assert await bus.last_event(SESSION, "j1") == (last, started)
    assert await bus.last_event("s2", "j1") is None


async def test_the_first_event_after_queued_is_stored_behind_number_zero(bus: Bus) -> None:
    """Whoever stores it owns the job (docs/adr/0002); later events are behind the one before."""
    queued, started = make_event("j1", "queued"), make_event("j1", "started")
    first = StoredEvent(await bus.publish_event(queued, expected=0), queued)
    second = StoredEvent(await bus.publish_event(started, expected=first.fence), started)
    with pytest.raises(Fenced):
        await bus.publish_event(make_event("j1", "result"), expected=first.fence)

    assert await bus.publish_event(make_event("j1", "result"), expected=second.fence) == second.seq + 1


async def test_a_replay_reads_page_after_page_in_order(bus: Bus) -> None:
    """Several jobs' events, more than two pages of them, and nothing of another session."""
    replays = counted("events_replayed_total")
    wanted = []
    for page in range(2):
        for job in ("j1", "j2"):
            wanted += await store_events(bus, REPLAY_BATCH // 2 + 3, f"{job}-{page}")
            await store_events(bus, 1, f"{job}-{page}", session="s2")
    found = await replayed(bus)

    assert len(wanted) > 2 * REPLAY_BATCH
    assert [stored.seq for stored in found] == wanted
    assert counted("events_replayed_total") == replays + len(wanted)


async def test_a_replay_begins_behind_the_number_that_the_reader_has(bus: Bus) -> None:
    """Up to that number nothing comes again."""
    numbers = await store_events(bus, 5)

    assert [stored.seq for stored in await replayed(bus, after=numbers[1])] == numbers[2:]
    assert await replayed(bus, after=numbers[-1]) == []
    assert await replayed(bus, after=numbers[-1] + 100) == []


async def test_events_as_large_as_a_page_are_replayed_too(bus: Bus) -> None:
    """A page has a bound in bytes; one event may be above it, and still is one."""
    sizes = [1, REPLAY_BATCH_BYTES + 1000, REPLAY_BATCH_BYTES // 2, REPLAY_BATCH_BYTES // 2, REPLAY_BATCH_BYTES + 1, 1]
    last = 0
    for size in sizes:
        last = await bus.publish_event(make_event(text="x" * size), expected=last)

    assert [len(stored.event.data["text"]) for stored in await replayed(bus)] == sizes


async def test_a_page_that_does_not_come_holds_nothing(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """The room that was set aside for it is given back, for whoever waits for it."""
    be_impatient(monkeypatch, 0.2)
    await store_events(bus, 1)
    with Allowance().share() as share:
        with store_paused(), pytest.raises(StoreUnavailable):
            await anext(bus.replay_session(SESSION, 0, share=share))
        assert share.held == 0


async def test_a_stored_event_that_cannot_be_read_is_skipped_and_counted(bus: Bus) -> None:
    """One of a newer version must not hide those around it."""
    skipped = counted("events_undecodable_total")
    before = await store_events(bus, 1, "j1")
    await bus.client.jetstream().publish(subjects.event(SESSION, "j2"), b"\xc1")
    after = await store_events(bus, 1, "j3")

    assert [stored.seq for stored in await replayed(bus)] == before + after
    assert counted("events_undecodable_total") == skipped + 1


async def test_the_stored_range_is_that_of_all_sessions(bus: Bus) -> None:
    """An emptied stream has its oldest number one above its newest."""
    assert await bus.stored_range() == (0, 0)
    await store_events(bus, 2)
    await store_events(bus, 3, session="s2")
    assert await bus.stored_range() == (1, 5)
    await bus.client.jetstream().purge_stream(SESSIONS)

    assert await bus.stored_range() == (6, 5)
