"""Clients that read slowly, or not at all: the gateway holds a bounded amount for them, and they lose nothing."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosedError

import gateway.event_stream
import gateway.websocket
from common.allowance import Allowance, Share
from common.schema import Event, now_ms
from tests.gateway_rig import ADD_TOOL, DEADLINE_S, GatewayRig, RunningGateway, Socket, gateway_rig
from tests.nats_server import NatsServer
from tests.unit.common.bus_rig import counted, until

CHUNK = 128 * 1024
BUDGET = 1024 * 1024
STALLED_CODE = 4008


class Watched(Allowance):
    """Remembers the most that was ever held; all that were made are in `made`."""

    made: list[Watched]

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.peak = 0
        self.made.append(self)

    def _hold(self, share: Share, size: int) -> None:
        super()._hold(share, size)
        self.peak = max(self.peak, self.held)


@pytest.fixture(autouse=True)
def allowances(monkeypatch: pytest.MonkeyPatch) -> list[Watched]:
    """Those of all connections, in the order in which they came."""
    Watched.made = []
    for door in (gateway.websocket, gateway.event_stream):
        monkeypatch.setattr(door, "Allowance", Watched)
    return Watched.made


@pytest.fixture
async def rig(nats_server: NatsServer) -> AsyncIterator[GatewayRig]:
    async with gateway_rig(nats_server.url, send_budget_bytes=BUDGET) as rig:
        await rig.add_server()
        yield rig


@pytest.fixture
async def impatient(rig: GatewayRig) -> RunningGateway:
    """A gateway that takes a client for stalled at once."""
    return await rig.start_gateway(stalled_client_s=0.5)


@pytest.fixture
async def patient(rig: GatewayRig) -> RunningGateway:
    """One that gives a client time enough to wake up."""
    return await rig.start_gateway(stalled_client_s=3)


class Job:
    """Tells one large event after the other."""

    def __init__(self, rig: GatewayRig, session: str, name: str) -> None:
        self._rig = rig
        self._session = session
        self._name = name
        self.numbers: list[int] = []

    async def tell(self, count: int) -> None:
        for _ in range(count):
            last = self.numbers[-1] if self.numbers else 0
            text = f"{len(self.numbers)} ".ljust(CHUNK, "x")
            data = {"stream": "stdout", "text": text}
            event = Event(job=self._name, session=self._session, attempt=1, type="output", time_ms=now_ms(), data=data)
            self.numbers.append(await self._rig.bus.publish_event(event, expected=last))


async def numbers(socket: Socket, count: int) -> list[int]:
    """Of the next events, each of which has come whole."""
    found = await socket.events(count)
    assert {len(event["data"]["text"]) for event in found} == {CHUNK}
    return [event["seq"] for event in found]


async def rest(receive: Callable[[], Awaitable[dict[str, Any]]]) -> tuple[list[dict[str, Any]], ConnectionClosedError]:
    """What can still be received of a connection, and how it ended."""
    found: list[dict[str, Any]] = []
    try:
        while True:
            found.append(await receive())
    except ConnectionClosedError as closed:
        return found, closed


async def test_a_client_that_reads_slowly_gets_everything_and_comes_back_to_live(
    rig: GatewayRig, allowances: list[Watched]
) -> None:
    """It reads a third of what comes; the rest waits in the store, and the gateway holds no more than its budget."""
    running = await rig.start_gateway()
    async with running.unread() as slow:
        job = Job(rig, await slow.open(), "j1")
        read: list[int] = []
        for _ in range(30):
            await job.tell(3)
            read += await numbers(slow, 1)
        assert counted("events_replayed_total") > 0
        read += await numbers(slow, 60)
        replayed = -1.0
        async with asyncio.timeout(DEADLINE_S):
            while counted("events_replayed_total") != replayed:
                replayed = counted("events_replayed_total")
                await job.tell(1)
                read += await numbers(slow, 1)

        assert read == job.numbers
        assert BUDGET / 2 < allowances[0].peak <= BUDGET


async def test_all_sessions_of_a_connection_share_its_budget(rig: GatewayRig, allowances: list[Watched]) -> None:
    """Each session is told whole and in order, however much the others tell at the same time."""
    running = await rig.start_gateway()
    async with running.unread() as slow:
        jobs = {session: Job(rig, session, "j1") for session in [await slow.open() for _ in range(4)]}
        async with asyncio.TaskGroup() as tasks:
            for job in jobs.values():
                tasks.create_task(job.tell(40))
        found = await slow.events(4 * 40)

        assert {session: [event["seq"] for event in found if event["session"] == session] for session in jobs} == {
            session: job.numbers for session, job in jobs.items()
        }
        assert allowances[0].peak <= BUDGET
    await until(lambda: allowances[0].held == 0)


async def test_a_client_that_reads_nothing_is_parted_from_and_can_resume(
    rig: GatewayRig, patient: RunningGateway, allowances: list[Watched]
) -> None:
    """What was held for it is given back at once. When it wakes up it reads what was sent, then why no more came."""
    stalled = counted("connections_stalled_total")
    async with patient.unread() as sleeper:
        opened = await sleeper.call("session/open")
        job = Job(rig, opened["session"], "j1")
        await job.tell(80)
        await until(lambda: counted("connections_stalled_total") > stalled)
        await until(lambda: allowances[0].held == 0)
        async with patient.http() as http:
            assert (await http.get("/v1/status")).json()["gateway"]["sessions"] == 0
        received, closed = await rest(sleeper.event)
        read = [event["seq"] for event in received]

    assert closed.rcvd is not None
    assert closed.rcvd.code == STALLED_CODE
    assert closed.rcvd.reason == "nothing was read for 3 s: resume from your last event"
    assert 0 < len(read) < 80
    async with patient.socket() as awake:
        await awake.open(session=opened["session"], epoch=opened["epoch"], seq=read[-1])
        read += await numbers(awake, 80 - len(read))
        await job.tell(1)
        read += await numbers(awake, 1)
    assert read == job.numbers
    assert counted("connections_stalled_total") == stalled + 1


async def test_a_client_that_does_not_wake_up_is_cut(rig: GatewayRig, impatient: RunningGateway) -> None:
    """The connection has gone from the gateway, though the client never read its close frame."""
    async with impatient.unread() as sleeper:
        job = Job(rig, await sleeper.open(), "j1")
        await job.tell(80)
        await until(lambda: counted("connections_open", door="websocket") == 0)
        _, closed = await rest(sleeper.event)

    assert closed.rcvd is None


async def test_a_client_that_does_not_read_its_answers_is_parted_from(rig: GatewayRig, patient: RunningGateway) -> None:
    """Of its requests so many are answered as fit in; then none is looked at any more."""
    await rig.publish_listing("math", tools=[ADD_TOOL | {"description": "x" * CHUNK}])
    stalled = counted("connections_stalled_total")
    async with patient.unread() as sleeper:
        for number in range(120):
            await sleeper.send_request(str(number), "tools/list", server="math")
        await until(lambda: counted("connections_stalled_total") > stalled)
        answered, closed = await rest(sleeper.answer)

    assert closed.rcvd is not None
    assert closed.rcvd.code == STALLED_CODE
    assert 0 < len(answered) < 120
    assert all(len(answer["result"]["tools"][0]["description"]) == CHUNK for answer in answered)


async def test_a_client_that_is_gone_with_every_queue_full_leaves_nothing_behind(
    rig: GatewayRig, impatient: RunningGateway
) -> None:
    """Its requests wait for those before them, whose answers wait for the client."""
    await rig.publish_listing("math", tools=[ADD_TOOL | {"description": "x" * CHUNK}])
    stalled = counted("connections_stalled_total")
    async with impatient.unread() as flood:
        for number in range(200):
            await flood.send_request(str(number), "tools/list", server="math")
        await until(lambda: counted("connections_stalled_total") > stalled)
        flood.connection.transport.abort()
    await until(lambda: counted("connections_open", door="websocket") == 0)


@pytest.mark.parametrize("path", ["events", "jobs"])
async def test_over_http_a_client_that_reads_nothing_is_cut(
    rig: GatewayRig, impatient: RunningGateway, allowances: list[Watched], path: str
) -> None:
    """There is no code that could tell why. An event stream's budget is given back."""
    stalled = counted("connections_stalled_total")
    async with impatient.http() as http:
        session = (await http.post("/v1/sessions")).json()["session"]
    await rig.end_job(session, "j1", result={"content": [{"type": "text", "text": "x" * 7_000_000}]})
    target = f"/v1/sessions/{session}/" + ("events" if path == "events" else "jobs/j1")
    narrow = await impatient.narrow_socket()
    with narrow:
        request = f"GET {target} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer acme-key\r\n"
        if path == "events":
            request += "Last-Event-ID: " + await _position(impatient, session) + "\r\n"
        narrow.sendall(f"{request}\r\n".encode())
        await until(lambda: counted("connections_stalled_total") > stalled)
        await until(lambda: counted("connections_open", door="event_stream") == 0)
        assert all(allowance.held == 0 for allowance in allowances)
        size = await _read_to_the_end(narrow)

    assert size < 7_000_000
    assert counted("connections_stalled_total") == stalled + 1


async def _position(running: RunningGateway, session: str) -> str:
    async with running.socket() as socket:
        opened = await socket.call("session/open", session=session)
    return f"{opened['epoch']}:0"


async def _read_to_the_end(narrow: socket.socket) -> int:
    """How many bytes came before the connection's end."""
    size = 0
    async with asyncio.timeout(DEADLINE_S):
        try:
            while data := await asyncio.get_running_loop().sock_recv(narrow, 65_536):
                size += len(data)
        except ConnectionResetError:
            pass
    return size


async def test_a_gateway_that_stops_does_not_wait_for_a_stalled_client(rig: GatewayRig) -> None:
    """Its drain's time is all it has, also to read its close frame."""
    running = await rig.start_gateway(drain_timeout_s=0.5)
    async with running.unread() as sleeper:
        job = Job(rig, await sleeper.open(), "j1")
        await job.tell(80)
        await running.stop()
        with pytest.raises(ConnectionClosedError):
            await numbers(sleeper, 80)
