"""The events of one attempt, on a real store that may be away."""

from __future__ import annotations

import asyncio

import pytest

from common.bus import Bus
from common.errors import Fenced, PayloadTooLarge
from common.schema import Event
from tests.nats_server import NatsServer
from tests.unit.common.bus_rig import DEADLINE_S, be_impatient, make_event, make_job, open_bus, store_paused, until
from worker import journal
from worker.journal import Journal


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that does not answer is given up, and tried again, soon."""
    be_impatient(monkeypatch, 0.2)
    monkeypatch.setattr(journal, "RETRY_MIN_S", 0.02)
    monkeypatch.setattr(journal, "RETRY_MAX_S", 0.05)


async def stored(bus: Bus, session: str) -> list[Event]:
    return [found.event async for found in bus.replay_session(session, 0)]


async def test_a_journal_numbers_its_events_by_attempt_and_keeps_their_order(bus: Bus) -> None:
    """Each behind the one before."""
    job = make_job()
    written = Journal(bus, job, attempt=2, last_seq=0)
    await written.append("started", {"worker": "w"})
    for number in range(3):
        await written.append("progress", {"progress": number})
    await written.append("result", {"outcome": "succeeded"})
    events = await stored(bus, job.session)

    assert [event.type for event in events] == ["started", "progress", "progress", "progress", "result"]
    assert [event.data.get("progress") for event in events[1:4]] == [0, 1, 2]
    assert {(event.job, event.attempt) for event in events} == {(job.id, 2)}


async def test_equal_events_are_each_stored(bus: Bus) -> None:
    """Two reports that say the same are two reports."""
    job = make_job()
    written = Journal(bus, job, attempt=1, last_seq=0)
    for _ in range(3):
        await written.append("progress", {"progress": 1})

    assert len(await stored(bus, job.session)) == 3


async def test_of_two_workers_that_start_the_same_attempt_the_store_accepts_one(
    bus: Bus, nats_server: NatsServer
) -> None:
    """Though both know the same of the job and say the same: whoever comes second does not run it."""
    job = make_job()
    async with open_bus(nats_server) as other:
        mine, theirs = Journal(bus, job, 1, 0), Journal(other, job, 1, 0)
        await mine.append("started", {})
        with pytest.raises(Fenced):
            await theirs.append("started", {})
        await mine.append("result", {"outcome": "succeeded"})
        with pytest.raises(Fenced):
            await theirs.append("result", {"outcome": "succeeded"})

    assert [event.type for event in await stored(bus, job.session)] == ["started", "result"]


async def test_two_workers_that_start_at_the_same_time_do_not_both_win(bus: Bus, nats_server: NatsServer) -> None:
    """However often it is tried."""
    async with open_bus(nats_server) as other:
        for _ in range(30):
            job = make_job()
            starts = [Journal(each, job, 1, 0).append("started", {}) for each in (bus, other)]
            ends = await asyncio.gather(*starts, return_exceptions=True)
            assert sorted(type(end).__name__ for end in ends) == ["Fenced", "NoneType"]


async def test_the_late_events_of_an_earlier_attempt_do_not_get_in(bus: Bus) -> None:
    """A worker that was frozen comes back, and its job is another's."""
    job = make_job()
    first = Journal(bus, job, 1, 0)
    await first.append("started", {})
    last = await bus.last_event(job.session, job.id)
    assert last is not None
    second = Journal(bus, job, 2, last.fence)
    await second.append("started", {})
    for type_ in ("progress", "output", "result"):
        with pytest.raises(Fenced):
            await first.append(type_, {})
    await second.append("result", {})

    assert [(event.type, event.attempt) for event in await stored(bus, job.session)] == [
        ("started", 1), ("started", 2), ("result", 2)
    ]  # fmt: skip


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("events_before", [0, 2])
async def test_an_acknowledgement_that_was_lost_costs_neither_the_event_nor_a_second_one(
    nats_server: NatsServer, events_before: int
) -> None:
    """The store took the event and was not heard: the repeat finds it there, and the job goes on."""
    job = make_job()
    async with open_bus(nats_server) as bus:
        written = Journal(bus, job, 1, 0)
        for _ in range(events_before):
            await written.append("progress", {})
        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
            with store_paused():
                writing = tasks.create_task(written.append("output", {"text": "once"}))
                sent = bus.client.stats["out_msgs"]
                await until(lambda: bus.client.stats["out_msgs"] >= sent + 3)  # it was given up and sent again
                assert not writing.done()
        await written.append("result", {})

        types = [event.type for event in await stored(bus, job.session)]
    assert types == ["progress"] * events_before + ["output", "result"]


@pytest.mark.usefixtures("impatient")
async def test_an_outage_of_the_store_is_waited_out(nats_server: NatsServer) -> None:
    """What a tool has told is stored once, in order, when the store is back."""
    job = make_job()
    async with open_bus(nats_server) as bus:
        written = Journal(bus, job, 1, 0)
        await written.append("started", {})
        await nats_server.stop(kill=True)
        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
            writing = tasks.create_task(written.append("output", {"text": "kept"}))
            await asyncio.wait({writing}, timeout=0.3)
            assert not writing.done()
            await nats_server.start()
        await written.append("result", {})

        assert [event.type for event in await stored(bus, job.session)] == ["started", "output", "result"]


@pytest.mark.usefixtures("impatient")
async def test_who_was_fenced_during_an_outage_learns_it_after_it(nats_server: NatsServer) -> None:
    """Waiting does not make the job one's own."""
    job = make_job()
    async with open_bus(nats_server) as bus:
        written = Journal(bus, job, 1, 0)
        await written.append("started", {})
        await nats_server.stop(kill=True)
        await until(lambda: not bus.connected)
        await nats_server.start()
        async with open_bus(nats_server) as other:
            last = await other.last_event(job.session, job.id)
            assert last is not None
            await other.publish_event(make_event(job.id, "result", attempt=1), expected=last.fence)
            async with asyncio.timeout(DEADLINE_S):
                with pytest.raises(Fenced):
                    await written.append("output", {"text": "late"})


async def test_an_event_that_no_message_can_hold_is_refused_and_leaves_the_journal_usable(bus: Bus) -> None:
    """The error that says so can be stored in its place."""
    job = make_job()
    written = Journal(bus, job, 1, 0)
    with pytest.raises(PayloadTooLarge):
        await written.append("result", {"result": "x" * bus.max_payload})
    await written.append("result", {"outcome": "failed"})

    assert [event.data for event in await stored(bus, job.session)] == [{"outcome": "failed"}]


async def test_events_that_are_stored_together_are_stored_once(bus: Bus, nats_server: NatsServer) -> None:
    """Also where the acknowledgement was lost: the repeat is answered with the last one's number."""
    job = make_job()
    written = Journal(bus, job, attempt=1, last_seq=0)
    await written.append("started", {})
    before = written.last_seq
    await written.append_all([("output", {"offset": number}) for number in range(5)])
    last = written.last_seq
    written.last_seq, written._written = before, 1
    await written.append_all([("output", {"offset": number}) for number in range(5)])
    await written.append("result", {})
    events = await stored(bus, job.session)

    assert last == before + 5
    assert [event.data["offset"] for event in events if event.type == "output"] == [0, 1, 2, 3, 4]
    assert [event.type for event in events][-1] == "result"


async def test_of_events_that_another_worker_has_overtaken_none_is_stored(bus: Bus, nats_server: NatsServer) -> None:
    """All or none, behind one fence."""
    job = make_job()
    async with open_bus(nats_server) as other:
        mine, theirs = Journal(bus, job, 1, 0), Journal(other, job, 1, 0)
        await theirs.append("started", {})
        with pytest.raises(Fenced):
            await mine.append_all([("output", {"offset": number}) for number in range(5)])

    assert [event.type for event in await stored(bus, job.session)] == ["started"]
