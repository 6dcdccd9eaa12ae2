"""A session's events for one reader: in order, without a gap, without a repeat, whatever is lost on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest
from nats.aio.msg import Msg
from nats.errors import SlowConsumerError

import common.event_log
import common.feed
from common import subjects
from common.allowance import Allowance, Share
from common.bus import Bus
from common.feed import BUFFERED_EVENTS, SessionFeed, StoredEvent
from tests.nats_server import NatsServer
from tests.unit.common.bus_rig import (
    DEADLINE_S,
    SESSION,
    counted,
    flushed,
    make_event,
    make_job,
    open_bus,
    store_events,
    until,
)


class Reader:
    """Iterates a feed once, as a client's connection does."""

    def __init__(self, feed: SessionFeed) -> None:
        self.feed = feed
        self._events = aiter(feed)

    async def events(self, count: int) -> list[StoredEvent]:
        async with asyncio.timeout(DEADLINE_S):
            return [await anext(self._events) for _ in range(count)]

    async def numbers(self, count: int) -> list[int]:
        return [stored.seq for stored in await self.events(count)]


@asynccontextmanager
async def reading(bus: Bus, after: int = 0, share: Share | None = None) -> AsyncIterator[Reader]:
    async with bus.subscribe_session(SESSION, after, share) as feed:
        yield Reader(feed)


class Watched(Allowance):
    """Remembers the most that was ever held."""

    peak = 0

    def _hold(self, share: Share, size: int) -> None:
        super()._hold(share, size)
        self.peak = max(self.peak, self.held)


class OutOfStep(SessionFeed):
    """Looks at no live message until it is let."""

    may_look = asyncio.Event()

    async def on_message(self, msg: Msg) -> None:
        await self.may_look.wait()
        await super().on_message(msg)


async def store_large(bus: Bus, count: int, size: int, job: str = "j1", session: str = SESSION) -> list[int]:
    """`count` events with so many bytes of text; their numbers."""
    numbers = [0]
    for _ in range(count):
        event = make_event(job, "output", session=session, stream="stdout", text="x" * size)
        numbers.append(await bus.publish_event(event, expected=numbers[-1]))
    return numbers[1:]


async def heard(feed: SessionFeed, count: int) -> None:
    """Returns when so many live messages have reached the feed since it began."""
    assert isinstance(feed, CountsLive)
    await until(lambda: feed.live_seen >= count)


class CountsLive(SessionFeed):
    """Tells how many live messages have come in."""

    def __init__(self, bus: Bus, session: str, after: int, share: Share) -> None:
        super().__init__(bus, session, after, share)
        self.live_seen = 0

    async def on_message(self, msg: Msg) -> None:
        await super().on_message(msg)
        self.live_seen += 1


class LosesTheSecond(SessionFeed):
    """Core NATS lost one live message, and nobody noticed."""

    _count = 0

    async def on_message(self, msg: Msg) -> None:
        self._count += 1
        if self._count != 2:
            await super().on_message(msg)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common.event_log, "SessionFeed", CountsLive)


async def test_a_feed_begins_with_what_was_missed_and_goes_on_live(bus: Bus) -> None:
    """One numbering throughout."""
    missed = await store_events(bus, 3)
    async with reading(bus) as reader:
        assert await reader.numbers(3) == missed
        live = await store_events(bus, 3, after=missed[-1])
        assert await reader.numbers(3) == live


async def test_a_feed_tells_every_event_as_it_was_stored(bus: Bus) -> None:
    """Missed or live, the `queued` one among them."""
    missed = [make_event("j1", "queued", attempt=0, server="srv"), make_event("j1", "started", worker="w")]
    live = [make_event("j2", "queued", attempt=0), make_event("j2", "output", text="é" * 1000)]
    for event in missed:
        await bus.publish_event(event, expected=0)
    async with reading(bus) as reader:
        found = await reader.events(2)
        for event in live:
            await bus.publish_event(event, expected=0)
        found += await reader.events(2)

    assert [stored.event for stored in found] == missed + live


async def test_a_feed_begins_behind_the_number_that_its_reader_has(bus: Bus) -> None:
    """Up to it nothing comes again, from the store or live."""
    stored = await store_events(bus, 4)
    async with reading(bus, stored[1]) as reader:
        assert await reader.numbers(2) == stored[2:]
    async with reading(bus, stored[-1]) as reader:
        live = await store_events(bus, 1, after=stored[-1])
        assert await reader.numbers(1) == live


async def test_a_feed_is_one_sessions(bus: Bus) -> None:
    """Neither missed nor live events of another one come in."""
    await store_events(bus, 2, session="s2")
    mine = await store_events(bus, 1)
    async with reading(bus) as reader:
        await store_events(bus, 2, "j2", session="s2")
        mine += await store_events(bus, 1, "j2")
        assert await reader.numbers(2) == mine


async def test_readers_of_one_session_each_get_everything(bus: Bus, nats_server: NatsServer) -> None:
    """On one connection or on two."""
    async with (
        open_bus(nats_server) as other,
        reading(bus) as one,
        reading(bus) as two,
        reading(other) as three,
    ):
        stored = await store_events(bus, 5)
        assert [await reader.numbers(5) for reader in (one, two, three)] == [stored] * 3


async def test_between_what_was_missed_and_what_is_live_there_is_no_gap_and_no_repeat(
    bus: Bus, nats_server: NatsServer
) -> None:
    """Jobs report all the time while readers come in at every moment."""
    per_job, jobs, readers = 60, 5, 12
    stored: list[int] = []

    async with open_bus(nats_server) as other:

        async def report(job: str) -> None:
            stored.extend(await store_events(other, per_job, job))

        async def read() -> list[int]:
            async with reading(bus) as reader:
                return await reader.numbers(per_job * jobs)

        async with asyncio.TaskGroup() as tasks:
            for job in range(jobs):
                tasks.create_task(report(f"j{job}"))
            each = []
            for _ in range(readers):
                each.append(tasks.create_task(read()))
                await flushed(other)  # let some more be stored before the next one comes in

    assert [task.result() for task in each] == [sorted(stored)] * readers


@pytest.mark.usefixtures("counting")
async def test_a_reader_that_does_not_keep_up_gets_everything_from_the_store(bus: Bus) -> None:
    """The buffer is bounded; what did not fit in is read back, exactly once, in order."""
    async with reading(bus) as reader:
        stored = await store_events(bus, 1)
        assert await reader.numbers(1) == stored
        replays = counted("events_replayed_total")
        late = await store_events(bus, 2 * BUFFERED_EVENTS, after=stored[-1])
        await heard(reader.feed, 1 + len(late))
        assert await reader.numbers(BUFFERED_EVENTS // 2) == late[: BUFFERED_EVENTS // 2]
        late += await store_events(bus, 10, after=late[-1])
        assert await reader.numbers(len(late) - BUFFERED_EVENTS // 2) == late[BUFFERED_EVENTS // 2 :]
        assert counted("events_replayed_total") >= replays + BUFFERED_EVENTS
        live = await store_events(bus, 3, after=late[-1])
        assert await reader.numbers(3) == live


async def read_all(bus: Bus, allowance: Allowance, count: int, session: str = SESSION) -> list[int]:
    """The numbers of a session's first events, read with a share that is given back."""
    with allowance.share() as share:
        async with bus.subscribe_session(session, 0, share) as feed, aclosing(aiter(feed)) as events:
            return [(await anext(events)).seq for _ in range(count)]


@pytest.mark.usefixtures("counting")
async def test_live_events_wait_in_the_store_where_their_bytes_are_too_many(bus: Bus) -> None:
    """Few of them are enough. Nothing is lost, and the feed comes back to live."""
    size = 100_000
    allowance = Watched(10 * size)
    with allowance.share() as share:
        async with reading(bus, 0, share) as reader:
            first = await store_events(bus, 1)
            assert await reader.numbers(1) == first
            replays = counted("events_replayed_total")
            late = await store_large(bus, 30, size, "j2")
            await heard(reader.feed, 31)
            assert allowance.held > 8 * size
            assert await reader.numbers(30) == late
            assert counted("events_replayed_total") >= replays + 20
            live = await store_events(bus, 2, "j3")
            assert await reader.numbers(2) == live
            assert counted("events_replayed_total") < replays + 31
    assert allowance.peak <= allowance.limit
    assert allowance.held == 0


@pytest.mark.usefixtures("counting")
async def test_what_comes_live_makes_way_for_what_was_missed(bus: Bus) -> None:
    """While a slow reader reads the store, live events take all the room. They are in the store as well."""
    size = 100_000
    allowance = Watched(10 * size + size // 2)
    stored = await store_large(bus, 12, size, "missed")
    with allowance.share() as share:
        async with reading(bus, 0, share) as reader:
            assert await reader.numbers(1) == stored[:1]
            stored += await store_large(bus, 12, size, "live")
            await heard(reader.feed, 12)
            assert allowance.held > 10 * size
            assert await reader.numbers(23) == stored[1:]
    assert allowance.peak <= allowance.limit
    assert allowance.held == 0


async def test_readers_that_share_an_allowance_get_everything_within_it(bus: Bus) -> None:
    """Many sessions' events come at once, from the store and live: all are told, and never more of them held."""
    size, before, live, sessions = 50_000, 20, 20, 5
    allowance = Watched(12 * size)
    names = [f"s{number}" for number in range(sessions)]
    stored = {name: await store_large(bus, before, size, "before", name) for name in names}
    async with asyncio.TaskGroup() as tasks:
        reads = {name: tasks.create_task(read_all(bus, allowance, before + live, name)) for name in names}
        for name in names:
            stored[name] += await store_large(bus, live, size, "live", name)

    assert {name: read.result() for name, read in reads.items()} == stored
    assert allowance.peak <= allowance.limit
    assert allowance.held == 0


async def test_events_above_the_whole_allowance_pass_one_at_a_time(bus: Bus) -> None:
    """From the store, between smaller ones and from several readers: none stands still, none is lost."""
    allowance = Watched(100_000)
    stored = {}
    for name in ("s1", "s2", "s3"):
        stored[name] = await store_large(bus, 5, 30_000, "small", name)
        stored[name] += await store_large(bus, 3, 250_000, "large", name)
        stored[name] += await store_large(bus, 5, 30_000, "last", name)
    async with asyncio.TaskGroup() as tasks:
        reads = {name: tasks.create_task(read_all(bus, allowance, 13, name)) for name in stored}

    assert {name: read.result() for name, read in reads.items()} == stored
    assert allowance.peak < 251_000
    assert allowance.held == 0


@pytest.mark.parametrize("live", [True, False], ids=["live", "missed"])
@pytest.mark.parametrize("cancelled", [True, False], ids=["cancelled", "closed"])
async def test_a_reader_that_stops_in_the_middle_gives_everything_back(bus: Bus, live: bool, cancelled: bool) -> None:
    """Events that it has, a batch half read, live ones that wait."""
    allowance = Allowance()
    stored = [] if live else await store_large(bus, 10, 1_000)
    held = asyncio.Event()

    async def read() -> None:
        with allowance.share() as share:
            async with bus.subscribe_session(SESSION, 0, share) as feed, aclosing(aiter(feed)) as events:
                if live:
                    await store_events(bus, 1, "j0")
                    await anext(events)
                    stored.extend(await store_large(bus, 10, 1_000))
                assert (await anext(events)).seq == stored[0]
                await until(lambda: allowance.held > 10_000)
                held.set()
                if cancelled:
                    await asyncio.Event().wait()

    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        reader = tasks.create_task(read())
        await held.wait()
        if cancelled:
            reader.cancel()

    assert allowance.held == 0


async def test_live_messages_that_the_connection_drops_come_from_the_store(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nats-py holds a bounded number for a feed that does not look; what it drops it reports, and the feed reads on."""
    monkeypatch.setattr(common.event_log, "SessionFeed", OutOfStep)
    monkeypatch.setattr(common.event_log, "LIVE_PENDING_EVENTS", 4)
    OutOfStep.may_look = asyncio.Event()
    told: list[Exception] = []
    on_error = bus.on_error

    async def remember(exc: Exception) -> None:
        told.append(exc)
        await on_error(exc)

    monkeypatch.setattr(bus, "on_error", remember)
    async with reading(bus) as reader:
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(reader.numbers(20))
            await until(lambda: reader.feed._behind is False)
            stored = await store_events(bus, 20)
            await until(lambda: len(told) >= 15)
            OutOfStep.may_look.set()
        assert waiting.result() == stored
        assert {type(exc) for exc in told} == {SlowConsumerError}


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "restarted"])
async def test_a_feed_heals_when_the_connection_was_lost(bus: Bus, nats_server: NatsServer, kill: bool) -> None:
    """What was stored while it was away comes from the store, then it is live again."""
    async with reading(bus) as reader:
        stored = await store_events(bus, 3)
        assert await reader.numbers(3) == stored
        for _ in range(2):
            await nats_server.stop(kill=kill)
            await nats_server.start()
            async with open_bus(nats_server) as other:  # which may be faster than our own reconnect
                stored += await store_events(other, 20, after=stored[-1])
                assert await reader.numbers(20) == stored[-20:]
                stored += await store_events(other, 3, after=stored[-1])
                assert await reader.numbers(3) == stored[-3:]


async def test_a_feed_that_is_opened_while_the_store_is_away_waits_for_it(bus: Bus, nats_server: NatsServer) -> None:
    """And then begins where it was told to."""
    stored = await store_events(bus, 3)
    await nats_server.stop(kill=True)
    await until(lambda: not bus.connected)
    async with reading(bus, stored[0]) as reader, asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(reader.numbers(2))
        await asyncio.sleep(0)
        await nats_server.start()
    assert waiting.result() == stored[1:]


async def test_an_idle_feed_looks_into_the_store_when_told_to(bus: Bus) -> None:
    """As after a lost message of which the connection knows; often, and without a repeat."""
    async with reading(bus) as reader:
        stored = await store_events(bus, 1)
        assert await reader.numbers(1) == stored
        for _ in range(3):
            reader.feed.resync()
            reader.feed.resync()
            stored += await store_events(bus, 2, after=stored[-1])
            assert await reader.numbers(2) == stored[-2:]


async def test_a_waiting_reader_is_woken_to_look_into_the_store(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not wait for the next live message."""
    monkeypatch.setattr(common.event_log, "SessionFeed", LosesTheSecond)
    async with reading(bus) as reader:
        stored = await store_events(bus, 1)
        assert await reader.numbers(1) == stored
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(reader.numbers(1))
            stored += await store_events(bus, 1, after=stored[-1])
            await flushed(bus)
            assert not waiting.done()
            reader.feed.resync()
        assert waiting.result() == stored[1:]


async def test_a_live_message_that_was_lost_unnoticed_is_missed_by_the_next_of_its_job(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each tells the number of the one before."""
    monkeypatch.setattr(common.event_log, "SessionFeed", LosesTheSecond)
    async with reading(bus) as reader:
        stored = await store_events(bus, 1)
        assert await reader.numbers(1) == stored
        stored += await store_events(bus, 3, after=stored[-1])
        assert await reader.numbers(3) == stored[1:]


@pytest.mark.parametrize("live", [True, False], ids=["live", "missed"])
async def test_an_event_that_cannot_be_read_is_skipped_and_counted(
    bus: Bus, live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of a newer version does not hold up the others, wherever it stands among them."""
    monkeypatch.setattr(common.feed, "LEADER_LAG_S", 0.3)
    skipped = counted("events_undecodable_total")

    async def unreadable(job: str) -> None:
        await bus.client.jetstream().publish(subjects.event(SESSION, job), b"\xc1")

    async with reading(bus) as reader:
        if live:
            first = await store_events(bus, 1, "j0")
            assert await reader.numbers(1) == first
        await unreadable("j1")
        stored = await store_events(bus, 1, "j2")
        await unreadable("j3")
        assert await reader.numbers(1) == stored
        after = await store_events(bus, 2, "j4")
        assert await reader.numbers(2) == after

    assert counted("events_undecodable_total") == skipped + 2


async def test_a_last_event_whose_live_message_reached_nobody_comes_all_the_same(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No event behind it shows the gap, and the connection stands."""
    monkeypatch.setattr(common.feed, "QUIET_MIN_S", 0.05)
    async with reading(bus) as reader:
        await store_events(bus, 1)
        first = await reader.numbers(1)
        for subscription in list(bus.client._subs.values()):
            if subscription.subject == subjects.live_of_session(SESSION):
                await subscription.unsubscribe()
        await store_events(bus, 1, job="other")
        second = await reader.numbers(1)

    assert second[0] > first[0]


async def test_a_feed_whose_time_to_look_came_while_its_reader_was_busy_looks_afterwards(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow client holds an event for longer than that, and the next one reaches nobody."""
    monkeypatch.setattr(common.feed, "QUIET_MIN_S", 0.05)
    async with reading(bus) as reader:
        await store_events(bus, 1)
        first = await reader.numbers(1)
        await until(lambda: reader.feed._look_due)
        for subscription in list(bus.client._subs.values()):
            if subscription.subject == subjects.live_of_session(SESSION):
                await subscription.unsubscribe()
        await store_events(bus, 1, job="other")
        second = await reader.numbers(1)

    assert second[0] > first[0]


async def test_an_accepted_job_of_which_no_event_comes_is_looked_for_soon(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session was idle, so its feed would not look into the store for a minute."""
    monkeypatch.setattr(common.feed, "QUIET_MIN_S", 0.05)
    async with reading(bus) as reader:
        await bus.publish_event(make_event("done", "result"), expected=0)
        await reader.events(1)
        for subscription in list(bus.client._subs.values()):
            if subscription.subject == subjects.live_of_session(SESSION):
                await subscription.unsubscribe()
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(reader.events(1))
            accepted = await bus.enqueue_job(make_job())

    assert [stored.seq for stored in waiting.result()] == [accepted.seq]


async def test_an_event_that_was_taken_back_does_not_hold_up_the_feed(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused job's `queued` may have been seen live; the store does not have it any more."""
    monkeypatch.setattr(common.feed, "LEADER_LAG_S", 0.3)
    monkeypatch.setattr(common.event_log, "SessionFeed", CountsLive)
    refused = make_event("refused", "queued", attempt=0)
    async with reading(bus) as reader:
        seq = await bus.publish_event(refused, expected=0)
        await heard(reader.feed, 1)
        await bus.client.jetstream().purge_stream("SESSIONS", subject=subjects.queued_event(SESSION, "refused"))
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(reader.numbers(2))
            later = await store_events(bus, 2)

    assert waiting.result() == later
    assert seq not in later


async def test_a_whole_job_is_told_in_the_order_of_its_life(bus: Bus) -> None:
    """`queued` by the gateway, the rest by the worker, under two subjects and one numbering."""
    job = make_job()
    async with reading(bus) as reader:
        await bus.enqueue_job(job)
        last = 0
        for type_ in ("started", "progress", "result"):
            event = make_event(job.id, type_)
            last = await bus.publish_event(event, expected=last)
        found = await reader.events(4)

    assert [stored.event.type for stored in found] == ["queued", "started", "progress", "result"]
    assert [stored.seq for stored in found] == sorted(stored.seq for stored in found)
