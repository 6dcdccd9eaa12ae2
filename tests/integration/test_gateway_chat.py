"""Chat turns at the gateways: accepted one at a time, their calls decided. Workers are played on the bus."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from common import subjects
from common.consumer import Delivery
from common.dead_letters import GivenUp
from common.schema import Event, EventType, now_ms
from tests.gateway_rig import DEADLINE_S, GatewayRig, Socket, gateway_rig
from tests.nats_server import NatsServer

CALL = "0192f0c1e5a0a1b2c3d4e5f6"


@pytest.fixture
async def rig(nats_server: NatsServer) -> AsyncIterator[GatewayRig]:
    async with gateway_rig(nats_server.url, chat_timeout_ms=77_000, job_timeout_ms=5_000) as rig:
        await rig.bus.ensure_server(subjects.CHAT, 10)
        yield rig


@pytest.fixture
async def socket(rig: GatewayRig) -> AsyncIterator[Socket]:
    gateway = await rig.start_gateway()
    async with gateway.socket() as socket:
        yield socket


async def delivered(rig: GatewayRig) -> Delivery:
    """The next turn, as a worker gets it."""
    async with asyncio.timeout(DEADLINE_S), rig.bus.consume_jobs(subjects.CHAT, lambda: 1) as deliveries:
        async for found in deliveries:
            return found
    raise AssertionError("the consumer ended")


async def store(rig: GatewayRig, turn: Delivery, type_: EventType, seq: int, **data: Any) -> int:
    job = turn.job
    event = Event(job=job.id, session=job.session, attempt=1, type=type_, time_ms=now_ms(), data=data)
    return await rig.bus.publish_event(event, expected=seq)


async def asking(rig: GatewayRig, socket: Socket, session: str) -> Delivery:
    """A turn that runs and asks leave for CALL, beside one that it does not ask for."""
    await socket.call("chat/send", session=session, content="go")
    turn = await delivered(rig)
    seq = await store(rig, turn, "started", 0, worker="w-1", model="m")
    calls = [{"job": CALL, "server": "math", "tool": "add", "arguments": {}, "ask": True}, {"job": "other"}]
    await store(rig, turn, "step", seq, step=1, calls=calls, usage={})
    return turn


async def test_a_turn_is_a_job_with_the_timeouts_of_turns(rig: GatewayRig, socket: Socket) -> None:
    """Its calls have those of jobs."""
    session = await socket.open()
    accepted = await socket.call("chat/send", session=session, content="What is 2 + 2?")
    job = (await delivered(rig)).job

    assert job.id == accepted["job"]
    assert (job.kind, job.server, job.timeout_ms) == ("chat", "chat", 77_000)
    assert job.arguments == {"content": "What is 2 + 2?", "call_timeout_ms": 5_000}
    assert (await socket.call("job/get", session=session, job=job.id))["server"] == "chat"


async def test_a_turn_that_is_sent_again_with_its_key_is_the_same(rig: GatewayRig, socket: Socket) -> None:
    """While it runs, and not one that is in the way."""
    session = await socket.open()
    first = await socket.call("chat/send", session=session, content="go", idempotencyKey="k")
    again = await socket.call("chat/send", session=session, content="go", idempotencyKey="k")
    other = await socket.refused("chat/send", session=session, content="else", idempotencyKey="k")

    assert again == first
    assert other["data"]["type"] == "idempotency_key_reused"
    assert await rig.bus.count_jobs(session) == 1


async def test_a_second_turn_is_refused_while_one_waits_or_runs_and_taken_when_it_has_ended(
    rig: GatewayRig, socket: Socket
) -> None:
    """Also in the moment between its last event and its acknowledgement: it is waited for then."""
    session = await socket.open()
    first = await socket.call("chat/send", session=session, content="go")
    waiting = await socket.refused("chat/send", session=session, content="and")
    turn = await delivered(rig)
    running = await socket.refused("chat/send", session=session, content="and")
    seq = await store(rig, turn, "started", 0, worker="w-1", model="m")
    await store(rig, turn, "result", seq, outcome="succeeded", result={"content": []})
    async with asyncio.TaskGroup() as tasks:
        second = tasks.create_task(socket.call("chat/send", session=session, content="next"))
        await asyncio.wait({second}, timeout=0.2)
        early = second.done()
        await turn.ack()
    elsewhere = await socket.call("chat/send", session=await socket.open(), content="go")

    for refusal in (waiting, running):
        assert (refusal["code"], refusal["data"]["type"]) == (409, "turn_in_progress")
        assert refusal["data"]["job"] == first["job"]
    assert not early
    assert (await delivered(rig)).job.id == second.result()["job"]
    assert (await delivered(rig)).job.id == elsewhere["job"]


@pytest.mark.parametrize("method", ["approve", "deny"])
async def test_a_decision_is_kept_once_for_the_turn_that_asks(rig: GatewayRig, socket: Socket, method: str) -> None:
    """The same again is fine, the other way is refused."""
    session = await socket.open()
    await asking(rig, socket, session)
    answer = await socket.call(f"chat/{method}", session=session, job=CALL)
    again = await socket.call(f"chat/{method}", session=session, job=CALL)
    other = await socket.refused(f"chat/{'deny' if method == 'approve' else 'approve'}", session=session, job=CALL)

    assert answer == again == {"job": CALL, "approved": method == "approve"}
    assert (other["code"], other["data"]["type"]) == (409, "already_decided")
    assert await rig.bus.decision(session, CALL) is (method == "approve")


async def test_only_what_a_turn_asks_leave_for_can_be_decided(rig: GatewayRig, socket: Socket) -> None:
    """Neither another call of it, nor that of another session or tenant."""
    session = await socket.open()
    await asking(rig, socket, session)
    other = await socket.refused("chat/approve", session=session, job="other")
    elsewhere = await socket.refused("chat/approve", session=await socket.open(), job=CALL)

    assert (other["code"], other["data"]["type"]) == (404, "unknown_call")
    assert elsewhere["data"]["type"] == "unknown_call"


@pytest.mark.parametrize("content", ["", None, 7, ["text"]])
async def test_a_turn_needs_a_text(socket: Socket, content: Any) -> None:
    """The refusal says where."""
    refused = await socket.refused("chat/send", session=await socket.open(), content=content)

    assert refused["data"]["type"] == "invalid_params"
    assert refused["data"]["problems"][0]["path"] == "$.content"


async def test_a_turn_that_waits_is_cancelled_at_once(rig: GatewayRig, socket: Socket) -> None:
    """And the session takes the next one."""
    session = await socket.open()
    turn = await socket.call("chat/send", session=session, content="go")
    cancelled = await socket.call("job/cancel", session=session, job=turn["job"])
    following = await socket.call("chat/send", session=session, content="again")

    assert cancelled["state"] == "result"
    assert following["job"] != turn["job"]


async def test_a_turn_that_was_given_up_is_not_redriven(rig: GatewayRig, socket: Socket) -> None:
    """Another job would make its calls again: its question can be sent again."""
    session = await socket.open()
    await socket.call("chat/send", session=session, content="go")
    turn = await delivered(rig)
    error = {"type": "too_many_attempts", "message": "given up after 3 attempts"}
    await rig.bus.dead_letter(
        GivenUp(
            subject=subjects.jobs(subjects.CHAT, session),
            payload=turn.payload,
            error=error,
            seq=turn.stream_seq,
            job=turn.job.id,
            deliveries=3,
            traceparent=None,
        )
    )
    refused = await socket.refused("dead_letters/redrive", letter="1")

    assert refused["data"]["type"] == "dead_letter_unreadable"
    assert "send its question again" in refused["message"]
