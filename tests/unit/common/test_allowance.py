"""What one connection may hold in memory, over all that reads for it: never more, and nobody stands still."""

from __future__ import annotations

import asyncio

import pytest

from common.allowance import Allowance


async def turns() -> None:
    """Everything that can go on without an event from outside has gone on."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_what_is_live_is_taken_only_where_there_is_room() -> None:
    """And what is given back is room again."""
    allowance = Allowance(100)
    with allowance.share() as one, allowance.share() as two:
        assert one.try_take(60)
        assert not two.try_take(41)
        assert two.try_take(40)
        assert not one.try_take(1)
        one.give(60)
        assert two.try_take(60)


def test_a_reader_that_leaves_gives_everything_back() -> None:
    """What it does afterwards changes nothing any more."""
    allowance = Allowance(100)
    with allowance.share() as stays:
        with allowance.share() as leaves:
            assert stays.try_take(10)
            assert leaves.try_take(90)
        assert allowance.held == 10
        leaves.give(90)
        assert not leaves.try_take(1)
        assert allowance.held == 10
    assert allowance.held == 0


async def test_a_read_waits_for_room_and_comes_before_what_asks_later() -> None:
    """Live events would otherwise take the room for which a read waits, again and again."""
    allowance = Allowance(100)
    with allowance.share() as live, allowance.share() as reads, allowance.share() as later:
        assert live.try_take(80)
        async with asyncio.TaskGroup() as tasks:
            first, second = tasks.create_task(reads.take(50)), tasks.create_task(later.take(10))
            await turns()
            assert not first.done()
            assert not second.done(), "it would pass the one that waits longer"
            assert not live.try_take(1)
            live.give(30)
            await turns()
            assert first.done()
            assert not second.done()
            live.give(50)
        assert allowance.held == reads.held + later.held == 60


async def test_an_item_above_the_limit_passes_when_nothing_else_is_held() -> None:
    """It could never be had otherwise. Nothing comes beside it."""
    allowance = Allowance(100)
    with allowance.share() as one, allowance.share() as two:
        assert not one.try_take(101)
        await one.take(500)
        assert not two.try_take(1)
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(two.take(200))
            await turns()
            assert not waiting.done()
            one.give(500)
        assert allowance.held == 200


async def test_readers_that_hold_something_and_all_wait_for_more_do_not_stand_still() -> None:
    """The first goes on above the limit, alone; the next one when that is given back."""
    allowance = Allowance(100)
    with allowance.share() as one, allowance.share() as two:
        assert one.try_take(50)
        assert two.try_take(50)
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(one.take(30))
            await turns()
            assert not first.done(), "the other one may give back"
            second = tasks.create_task(two.take(30))
            await turns()
            assert first.done()
            assert not second.done()
            assert allowance.held == 130
            one.give(80)
        assert allowance.held == 80


async def test_a_reader_that_has_to_wait_gives_back_what_it_can_have_again() -> None:
    """That may be all the room it needs."""
    allowance = Allowance(100)
    with allowance.share() as share:
        assert share.try_take(90)
        share.shed = lambda: share.give(90)
        await share.take(20)
        assert allowance.held == 20
        share.shed = pytest.fail  # not while there is room
        await share.take(20)


async def test_a_wait_that_is_cancelled_holds_nothing_and_holds_up_nobody() -> None:
    """Whoever waited behind it is next."""
    allowance = Allowance(100)
    with allowance.share() as holds, allowance.share() as one, allowance.share() as two:
        assert holds.try_take(60)
        async with asyncio.TaskGroup() as tasks:
            first, second = tasks.create_task(one.take(50)), tasks.create_task(two.take(40))
            await turns()
            first.cancel()
            await turns()
            assert second.done()
        assert allowance.held == 100
        assert one.held == 0


async def test_a_wait_that_is_cancelled_in_the_moment_of_its_end_holds_nothing() -> None:
    """The room was granted, but its reader will not know of it."""
    allowance = Allowance(100)
    with allowance.share() as holds, allowance.share() as waits:
        assert holds.try_take(100)
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(waits.take(50))
            await turns()
            holds.give(100)
            assert allowance.held == 50
            waiting.cancel()
        assert allowance.held == 0
