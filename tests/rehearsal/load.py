"""The load: clients that hold a session each, call in several lanes at once, and write down all that they are told."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from client import ClientError, Event, Session, connect
from tests.rehearsal.lanes import Kept, Lane, Long, Progress, Quick, Stream

RECONNECT_S = 30.0


@dataclass
class Call:
    """One call as its client made it."""

    lane: str
    session: str
    begun: float
    ended: float = 0.0
    job: str = ""
    """Empty until an event came."""
    attempts: int = 0
    state_lost: bool = False
    fault: str = ""
    """Why it has failed."""

    @property
    def took_ms(self) -> float:
        return (self.ended - self.begun) * 1000


@dataclass
class Seen:
    """A session as its client followed it, from its first event to its last."""

    session: str
    start_seq: int
    numbers: list[int] = field(default_factory=list)
    recorded: list[str] = field(default_factory=list)
    """Jobs whose message is in the conversation."""
    faults: list[str] = field(default_factory=list)

    @property
    def seq(self) -> int:
        return self.numbers[-1] if self.numbers else self.start_seq


class Client:
    """`run()` returns after `stop()` and `leave()`. It never gives up a session: whatever fails is written down."""

    def __init__(self, number: int, urls: Sequence[str]) -> None:
        self.calls: list[Call] = []
        self.seen: Seen
        self.opened = asyncio.Event()
        self.quiet = asyncio.Event()
        """Set when no call is under way any more."""
        self.written = asyncio.Event()
        """Set when the conversation was read."""
        self._lanes: list[Lane] = [Quick(), Long(random.Random(number)), Progress(), Stream(), Kept()]
        first = number % len(urls)
        self._urls = [*urls[first:], *urls[:first]]
        self._stopping = asyncio.Event()
        self._settled = asyncio.Event()
        self._leaving = asyncio.Event()

    def stop(self) -> None:
        """Call nothing more."""
        self._stopping.set()

    def settled(self) -> None:
        """The workers have done all that they do for its calls: its conversation is complete."""
        self._settled.set()

    def leave(self) -> None:
        """Close the session."""
        self._leaving.set()

    async def run(self) -> None:
        async with connect(self._urls, record=True, reconnect_s=RECONNECT_S) as session:
            self.seen = Seen(session.id, session.position.seq)
            async with asyncio.TaskGroup() as tasks:
                listening = tasks.create_task(self._listen(session))
                self.opened.set()
                async with asyncio.TaskGroup() as lanes:
                    for lane in self._lanes:
                        lanes.create_task(self._keep_calling(session, lane))
                self.quiet.set()
                await self._settled.wait()
                await self._read_conversation(session)
                self.written.set()
                await self._leaving.wait()
                listening.cancel()

    async def _listen(self, session: Session) -> None:
        try:
            async with aclosing(session.events()) as events:
                async for event in events:
                    self.seen.numbers.append(event.seq)
        except ClientError as exc:
            self.seen.faults.append(f"session {session.id} is not followed any more: {exc}")

    async def _keep_calling(self, session: Session, lane: Lane) -> None:
        while not self._stopping.is_set():
            call = Call(lane.name, session.id, time.monotonic())
            self.calls.append(call)
            await self._call(session, lane, call)
            try:
                async with asyncio.timeout(lane.pause_s):
                    await self._stopping.wait()
            except TimeoutError:
                continue

    async def _call(self, session: Session, lane: Lane, call: Call) -> None:
        ask = lane.ask()
        events: list[Event] = []
        try:
            async with aclosing(session.call(*ask)) as told:
                async for event in told:
                    call.job = event.job
                    events.append(event)
        except ClientError as exc:
            call.fault = f"{type(exc).__name__}: {exc}"
        else:
            call.fault = self._fault(lane, events)
        call.ended = time.monotonic()
        call.attempts = events[-1].attempt if events else 0
        call.state_lost = any(event.type == "started" and event.data["state_lost"] for event in events)

    def _fault(self, lane: Lane, events: list[Event]) -> str:
        end = events[-1].data
        if end["outcome"] != "succeeded":
            return f"{end['outcome']}: {end.get('error')}"
        return lane.fault(events)

    async def _read_conversation(self, session: Session) -> None:
        try:
            async with aclosing(session.conversation.messages()) as messages:
                async for message in messages:
                    if isinstance(message, dict):
                        self.seen.recorded.append(message["job"])
                    else:
                        self.seen.faults.append(f"unreadable in the conversation of {session.id}: {message}")
        except ClientError as exc:
            self.seen.faults.append(f"the conversation of {session.id} cannot be read: {exc}")


class Load:
    """The clients together."""

    def __init__(self, count: int, urls: Sequence[str]) -> None:
        self.clients = [Client(number, urls) for number in range(count)]

    @property
    def calls(self) -> list[Call]:
        return [call for client in self.clients for call in client.calls]

    async def begin(self, tasks: asyncio.TaskGroup) -> None:
        """Returns when every session is open."""
        for client in self.clients:
            tasks.create_task(client.run())
        for client in self.clients:
            await client.opened.wait()

    async def stop(self) -> None:
        """Returns when no call is under way any more."""
        for client in self.clients:
            client.stop()
        for client in self.clients:
            await client.quiet.wait()

    async def read_conversations(self) -> None:
        for client in self.clients:
            client.settled()
        for client in self.clients:
            await client.written.wait()

    def leave(self) -> None:
        for client in self.clients:
            client.leave()
