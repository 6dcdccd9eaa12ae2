"""A waiting job's position as a client sees it, through real gateways; the test plays the worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway import queue_positions
from tests.gateway_rig import DEADLINE_S, GatewayRig, Socket, gateway_rig
from tests.nats_server import NatsServer

CALL = {"server": "math", "name": "add", "arguments": {"a": 1, "b": 2}}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports come in milliseconds."""
    monkeypatch.setattr(queue_positions, "FIRST_AFTER_S", 0.05)
    monkeypatch.setattr(queue_positions, "PERIOD_MAX_S", 0.05)
    monkeypatch.setattr(queue_positions, "ROUND_PERIOD_S", 0.02)


@pytest.fixture
async def rig(nats_server: NatsServer) -> AsyncIterator[GatewayRig]:
    async with gateway_rig(nats_server.url) as rig:
        await rig.add_server()
        yield rig


async def call(socket: Socket, session: str) -> dict[str, Any]:
    return await socket.call("tools/call", session=session, **CALL)


async def take(rig: GatewayRig) -> None:
    """A worker takes the next job, and ends it."""
    async with asyncio.timeout(DEADLINE_S), rig.bus.consume_jobs("math", lambda: 1) as deliveries:
        async for delivery in deliveries:
            await rig.start_job(delivery.job.session, delivery.job.id)
            await rig.end_job(delivery.job.session, delivery.job.id)
            await delivery.ack()
            return


async def test_a_client_sees_its_job_come_forward_and_sees_the_same_again_after_a_reconnect(rig: GatewayRig) -> None:
    """Between `queued` and `started`, in order, through whichever gateway it comes back."""
    one, two = await rig.start_gateway(), await rig.start_gateway()
    async with one.socket() as others, one.socket() as socket:
        busy = await others.open()
        for _ in range(3):
            await call(others, busy)
        opened = await socket.call("session/open")
        session = opened["session"]
        job = (await call(socket, session))["job"]
        seen = await socket.events(2)
        for _ in range(4):
            await take(rig)
            seen.append(await socket.event())
        seen.append(await socket.event())
        shown = await socket.call("job/get", session=session, job=job)
    async with two.socket() as again:
        joined = await again.call("session/open", session=session, epoch=opened["epoch"], seq=opened["seq"])
        replayed = await again.events(len(seen))

    assert [(event["type"], event["attempt"]) for event in seen] == [
        ("queued", 0),
        *[("progress", 0)] * 4,
        ("started", 1),
        ("result", 1),
    ]
    assert [event["data"] for event in seen[1:5]] == [
        {"progress": 0, "total": 3, "message": "3 jobs ahead in the queue of math", "position": 3},
        {"progress": 1, "total": 3, "message": "2 jobs ahead in the queue of math", "position": 2},
        {"progress": 2, "total": 3, "message": "1 job ahead in the queue of math", "position": 1},
        {"progress": 3, "total": 3, "message": "next in the queue of math", "position": 0},
    ]
    assert {event["job"] for event in seen} == {job}
    assert shown["state"] == "result"
    assert (joined["recovered"], replayed) == (True, seen)


async def test_a_job_that_waits_is_still_queued_and_can_be_cancelled(rig: GatewayRig) -> None:
    """Its position is no state; nothing is told after its end."""
    gateway = await rig.start_gateway()
    async with gateway.socket() as socket:
        session = await socket.open()
        first, second = [(await call(socket, session))["job"] for _ in range(2)]
        positions: dict[str, int] = {}
        while positions.keys() != {first, second}:
            event = await socket.event()
            if event["type"] == "progress":
                positions[event["job"]] = event["data"]["position"]
        state = (await socket.call("job/get", session=session, job=second))["state"]
        cancelled = await socket.call("job/cancel", session=session, job=first)
        ended, forward = await socket.events(2)

    assert positions == {first: 0, second: 1}
    assert (state, cancelled["state"]) == ("queued", "result")
    assert (ended["job"], ended["type"], ended["data"]["outcome"]) == (first, "result", "cancelled")
    assert (forward["job"], forward["type"], forward["data"]["position"]) == (second, "progress", 0)


async def test_positions_go_on_after_nats_was_away(rig: GatewayRig, nats_server: NatsServer) -> None:
    """The gateway tells again when it is back; the client's socket stays."""
    gateway = await rig.start_gateway()
    async with gateway.socket() as socket:
        busy, session = await socket.open(), await socket.open()
        await call(socket, busy)
        job = (await call(socket, session))["job"]
        while (await _position(socket, job)) != 1:
            continue
        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
            tasks.create_task(rig.bus.reconnection())  # the worker's side too: a pull from before would take a job
            await nats_server.stop()
            await gateway.until_ready(False)
            await nats_server.start()
            await gateway.until_ready()
        await take(rig)
        position = await _position(socket, job)

    assert position == 0


async def _position(socket: Socket, job: str) -> int:
    """What the job is told next."""
    while True:
        event = await socket.event()
        if event["job"] == job and event["type"] == "progress":
            return int(event["data"]["position"])
