"""Which container boots next: the one that a job waits for."""

from __future__ import annotations

import asyncio

import pytest

from worker.boot_gate import BootGate


class Boots:
    """Boots that end when they are told to."""

    def __init__(self, gate: BootGate, tasks: asyncio.TaskGroup) -> None:
        self.begun: list[str] = []
        self._gate = gate
        self._tasks = tasks
        self._ends: dict[str, asyncio.Event] = {}

    async def start(self, name: str, *, wanted: list[bool]) -> asyncio.Task[None]:
        self._ends[name] = asyncio.Event()
        task = self._tasks.create_task(self._boot(name, wanted))
        await settle()
        return task

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await settle()

    async def _boot(self, name: str, wanted: list[bool]) -> None:
        async with self._gate.place(lambda: wanted[0]):
            self.begun.append(name)
            await self._ends[name].wait()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_no_more_boots_run_than_there_are_places() -> None:
    """The others follow in the order of their coming."""
    async with asyncio.TaskGroup() as tasks:
        boots = Boots(BootGate(2), tasks)
        for name in "abcd":
            await boots.start(name, wanted=[False])
        assert boots.begun == ["a", "b"]
        await boots.end("b")
        assert boots.begun == ["a", "b", "c"]
        for name in "acd":
            await boots.end(name)

    assert boots.begun == ["a", "b", "c", "d"]


async def test_a_boot_that_a_job_waits_for_goes_before_spare_ones() -> None:
    """Also if it came as a spare one, and the job came later."""
    async with asyncio.TaskGroup() as tasks:
        boots = Boots(BootGate(1), tasks)
        later = [False]
        await boots.start("first", wanted=[True])
        await boots.start("spare", wanted=[False])
        await boots.start("wanted later", wanted=later)
        await boots.start("wanted", wanted=[True])
        later[0] = True
        for name in ("first", "wanted later", "wanted", "spare"):
            await boots.end(name)

    assert boots.begun == ["first", "wanted later", "wanted", "spare"]


@pytest.mark.parametrize("given", [False, True], ids=["waiting", "just given its place"])
async def test_a_boot_that_is_given_up_leaves_its_place_to_the_next(given: bool) -> None:
    """In whichever moment."""
    async with asyncio.TaskGroup() as tasks:
        boots = Boots(BootGate(1), tasks)
        await boots.start("first", wanted=[True])
        second = await boots.start("second", wanted=[True])
        await boots.start("third", wanted=[False])
        if given:
            boots._ends["first"].set()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        second.cancel()
        await boots.end("first")
        await boots.end("third")

    assert boots.begun[-1] == "third"
