"""The concurrency limit of a process and of each server in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.common.bus_rig import DEADLINE_S, counted
from worker.slots import Slots


def nobody() -> None:
    """Wants not to be told."""


def slots(limit: int, **servers: int) -> Slots:
    made = Slots(limit)
    for server, server_limit in servers.items():
        made.add_server(server, server_limit, nobody)
    return made


class Taken:
    """Who has got a slot so far, in order."""

    def __init__(self, limits: Slots, tasks: asyncio.TaskGroup) -> None:
        self.order: list[str] = []
        self._limits = limits
        self._tasks = tasks

    async def ask(self, who: str, server: str) -> asyncio.Task[None]:
        """Returns when the question was put."""
        task = self._tasks.create_task(self._take(who, server))
        await settle()
        return task

    async def _take(self, who: str, server: str) -> None:
        await self._limits.take(server)
        self.order.append(who)


async def settle() -> None:
    """Let every task that can go on go on."""
    for _ in range(5):
        await asyncio.sleep(0)


@asynccontextmanager
async def taking(limits: Slots) -> AsyncIterator[Taken]:
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        yield Taken(limits, tasks)


def test_a_process_has_so_many_slots_over_all_servers() -> None:
    """However many each server might have."""
    limits = slots(3, a=10, b=10)
    taken = [limits.try_take(server) for server in ("a", "b", "a", "b", "a")]

    assert taken == [True, True, True, False, False]
    assert (limits.used, limits.room("a"), limits.room("b")) == (3, 0, 0)
    limits.release("a")
    assert (limits.used, limits.room("b"), limits.try_take("b")) == (2, 1, True)


def test_a_server_has_its_own_limit_below_the_process() -> None:
    """The others have the rest."""
    limits = slots(5, a=2, b=4)
    taken = [limits.try_take("a") for _ in range(3)]

    assert taken == [True, True, False]
    assert (limits.room("a"), limits.room("b")) == (0, 3)


def test_a_server_that_is_not_served_has_no_room() -> None:
    """Nothing of it is asked for."""
    limits = slots(5, a=2)

    assert (limits.room("b"), limits.try_take("b")) == (0, False)


def test_a_removed_server_has_no_room_and_its_jobs_end_as_ever() -> None:
    """A drain goes on with them."""
    limits = slots(5, a=2)
    assert limits.try_take("a")
    limits.remove_server("a", nobody)
    assert limits.room("a") == 0
    limits.release("a")

    assert limits.used == 0


def test_a_server_whose_entry_changed_keeps_its_limit_when_the_old_one_has_drained() -> None:
    """The old one drains beside the new one, and leaves after it came."""
    limits = Slots(5)
    told: list[str] = []
    old, new = (lambda: told.append("old")), (lambda: told.append("new"))
    limits.add_server("a", 2, old)
    limits.try_take("a")
    limits.add_server("a", 3, new)
    limits.release("a")
    limits.remove_server("a", old)

    assert limits.room("a") == 3
    limits.try_take("a")
    limits.release("a")
    assert told == ["new", "new"]
    limits.remove_server("a", new)
    assert limits.room("a") == 0


def test_whoever_asked_to_be_told_is_told_when_a_slot_comes_free() -> None:
    """Each server: the slot may be one for any of them."""
    told: list[str] = []
    limits = Slots(1)
    for server in ("a", "b"):
        limits.add_server(server, 1, lambda server=server: told.append(server))  # type: ignore[misc]
    limits.try_take("a")
    assert told == []
    limits.release("a")

    assert told == ["a", "b"]


def test_what_runs_is_counted_by_server() -> None:
    """For the operator."""
    limits = slots(5, counted_one=2)
    limits.try_take("counted_one")
    limits.try_take("counted_one")
    limits.release("counted_one")

    assert counted("jobs_running", server="counted_one") == 1


async def test_who_waits_gets_slots_in_the_order_of_asking() -> None:
    """One for each that comes free."""
    limits = slots(1, a=1)
    async with taking(limits) as taken:
        for who in ("first", "second", "third"):
            await taken.ask(who, "a")
        assert taken.order == ["first"]
        for expected in (["first", "second"], ["first", "second", "third"]):
            limits.release("a")
            await settle()
            assert taken.order == expected


async def test_who_comes_later_does_not_overtake_who_waits() -> None:
    """Also when it asks in the moment in which a slot comes free."""
    limits = slots(1, a=1)
    async with taking(limits) as taken:
        await taken.ask("first", "a")
        await taken.ask("second", "a")
        limits.release("a")
        await taken.ask("third", "a")
        assert taken.order == ["first", "second"]
        limits.release("a")


async def test_a_server_at_its_limit_does_not_hold_up_another_that_waits() -> None:
    """Though it has waited longer."""
    limits = slots(2, a=1, b=2)
    async with taking(limits) as taken:
        await taken.ask("a1", "a")
        await taken.ask("b1", "b")
        await taken.ask("a2", "a")
        await taken.ask("b2", "b")
        limits.release("b")
        await settle()
        assert taken.order == ["a1", "b1", "b2"]
        limits.release("a")
        await settle()
        assert taken.order == ["a1", "b1", "b2", "a2"]


async def test_a_server_at_its_limit_does_not_hold_up_another_that_asks() -> None:
    """There is room for it: nothing has to end first."""
    limits = slots(3, a=1, b=2)
    async with taking(limits) as taken:
        await taken.ask("a1", "a")
        await taken.ask("a2", "a")
        await taken.ask("b1", "b")
        assert taken.order == ["a1", "b1"]
        limits.release("a")


async def test_who_gives_up_waiting_is_passed_over() -> None:
    """The slot goes to the next."""
    limits = slots(1, a=1)
    async with taking(limits) as taken:
        await taken.ask("first", "a")
        gone = await taken.ask("second", "a")
        await taken.ask("third", "a")
        gone.cancel()
        await settle()
        limits.release("a")
        await settle()

        assert taken.order == ["first", "third"]
    assert limits.used == 1


@pytest.mark.parametrize("others_wait", [True, False])
async def test_who_gives_up_in_the_moment_of_getting_a_slot_gives_it_back(others_wait: bool) -> None:
    """To who waits next, or to the process."""
    limits = slots(1, a=1)
    async with taking(limits) as taken:
        await taken.ask("first", "a")
        gone = await taken.ask("second", "a")
        if others_wait:
            await taken.ask("third", "a")
        limits.release("a")
        gone.cancel()
        await settle()

        assert gone.cancelled()
        assert taken.order == ["first", "third"] if others_wait else ["first"]
    assert limits.used == int(others_wait)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(["take", "cancel", "release"]), st.integers(0, 9)), max_size=40))
def test_no_limit_is_ever_passed_and_no_slot_is_ever_lost(steps: list[tuple[str, int]]) -> None:
    """Whatever comes, goes and gives up in whatever order; nobody waits who could run."""

    async def play() -> None:
        each = {"a": 2, "b": 3}
        limits = slots(4, **each)
        waiting: list[tuple[str, asyncio.Task[None]]] = []
        running: list[str] = []
        async with asyncio.TaskGroup() as tasks:
            for action, number in steps:
                if action == "take":
                    server = "ab"[number % 2]
                    waiting.append((server, tasks.create_task(limits.take(server))))
                elif action == "cancel" and waiting:
                    waiting[number % len(waiting)][1].cancel()
                elif action == "release" and running:
                    limits.release(running.pop(number % len(running)))
                await settle()
                running += [server for server, task in waiting if task.done() and not task.cancelled()]
                waiting = [(server, task) for server, task in waiting if not task.done()]

                assert limits.used == len(running) <= 4
                assert all(running.count(server) <= limit for server, limit in each.items())
                assert all(limits.room(server) == 0 for server, _ in waiting)
            for _, task in waiting:
                task.cancel()
        assert limits.used == len(running)

    asyncio.run(play())
