"""Idempotency keys: a call that is repeated is one job, whichever gateway is asked."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from common.acceptance import HALF_ACCEPTED_MS
from common.streams import IDEMPOTENCY_BUCKET, JOBS
from tests.gateway_rig import GatewayRig, RunningGateway, Socket, gateway_rig
from tests.nats_server import NatsServer

ARGUMENTS = {"a": 1, "b": 2}


@pytest.fixture
async def rig(nats_server: NatsServer) -> AsyncIterator[GatewayRig]:
    async with gateway_rig(nats_server.url) as made:
        await made.add_server("math")
        yield made


@pytest.fixture
async def gateway(rig: GatewayRig) -> RunningGateway:
    return await rig.start_gateway()


@pytest.fixture
async def socket(gateway: RunningGateway) -> AsyncIterator[Socket]:
    async with gateway.socket() as opened:
        await opened.until_status("math", "ready")
        yield opened


def call_of(session: str, key: str, **params: Any) -> dict[str, Any]:
    facts = {"session": session, "server": "math", "name": "add", "arguments": ARGUMENTS, "idempotencyKey": key}
    return facts | params


async def test_the_same_key_is_the_same_job_also_through_another_gateway(
    rig: GatewayRig, gateway: RunningGateway, socket: Socket
) -> None:
    """Whether it waits, runs or has ended; the order of the arguments does not count. Another key is another job."""
    session = await socket.open()
    first = await socket.call("tools/call", **call_of(session, "k1"))
    other = await rig.start_gateway()
    async with other.socket() as elsewhere, gateway.http() as http:
        await elsewhere.until_status("math", "ready")
        waiting = await elsewhere.call("tools/call", **call_of(session, "k1", arguments={"b": 2, "a": 1}))
        await rig.start_job(session, first["job"])
        running = await socket.call("tools/call", **call_of(session, "k1"))
        await rig.end_job(session, first["job"])
        body = {"server": "math", "name": "add", "arguments": ARGUMENTS}
        ended = await http.post(f"/v1/sessions/{session}/jobs", json=body, headers={"Idempotency-Key": "k1"})
        second = await socket.call("tools/call", **call_of(session, "k2"))

    assert waiting == running == ended.json() == first
    assert ended.status_code == 202
    assert second["job"] != first["job"]
    assert await rig.bus.unfinished_jobs(session) == [first["job"], second["job"]]


async def test_many_calls_with_one_key_at_the_same_time_are_one_job(rig: GatewayRig, socket: Socket) -> None:
    """Over two gateways: the store lets one of them make the record."""
    session = await socket.open()
    other = await rig.start_gateway()
    async with AsyncExitStack() as stack:
        sockets = [socket, *[await stack.enter_async_context(other.socket()) for _ in range(4)]]
        for each in sockets:
            await each.until_status("math", "ready")
        answers = await asyncio.gather(*(each.call("tools/call", **call_of(session, "k")) for each in sockets))

    assert len({answer["job"] for answer in answers}) == 1
    assert (await rig.bus.client.jetstream().stream_info(JOBS)).state.messages == 1
    events = [stored async for stored in rig.bus.replay_session(session, 0)]
    assert [(stored.seq, stored.event.type) for stored in events] == [(answers[0]["seq"], "queued")]


@pytest.mark.parametrize("params", [{"arguments": {"a": 1, "b": 3}}, {"name": "sub"}, {"server": "more"}])
async def test_the_same_key_for_another_call_is_refused(
    rig: GatewayRig, socket: Socket, params: dict[str, Any]
) -> None:
    """Nothing is stored of it, and the error names the job that has the key."""
    tools: list[dict[str, Any]] = [{"name": name, "inputSchema": {}} for name in ("add", "sub")]
    for server in ("math", "more"):
        await rig.add_server(server, tools=tools)
        await socket.until_status(server, "ready")
    session = await socket.open()
    job = (await socket.call("tools/call", **call_of(session, "k")))["job"]

    refused = await socket.refused("tools/call", **call_of(session, "k", **params))

    assert (refused["code"], refused["data"]["type"]) == (422, "idempotency_key_reused")
    assert refused["data"]["job"] == job
    assert refused["data"]["retryable"] is False
    assert await rig.bus.unfinished_jobs(session) == [job]


async def test_a_key_belongs_to_its_session(rig: GatewayRig, socket: Socket) -> None:
    """Two clients may use the same one."""
    jobs = [(await socket.call("tools/call", **call_of(await socket.open(), "k")))["job"] for _ in range(2)]

    assert jobs[0] != jobs[1]


async def test_a_call_that_was_refused_can_be_repeated_with_its_key(nats_server: NatsServer) -> None:
    """A full queue leaves no job: when there is room, the same key gets one."""
    async with gateway_rig(nats_server.url, queue_limit=1) as rig:
        await rig.add_server("math")
        gateway = await rig.start_gateway()
        async with gateway.socket() as socket:
            await socket.until_status("math", "ready")
            session = await socket.open()
            first = await socket.call("tools/call", **call_of(session, "k1"))
            refused = await socket.refused("tools/call", **call_of(session, "k2"))
            again = await socket.call("tools/call", **call_of(session, "k1"))
            await socket.call("job/cancel", session=session, job=first["job"])
            second = await socket.call("tools/call", **call_of(session, "k2"))

    assert refused["data"]["type"] == "queue_full"
    assert again == first
    assert second["job"] != first["job"]


async def test_a_call_whose_gateway_died_half_way_is_made_good_by_its_repetition(
    rig: GatewayRig, socket: Socket
) -> None:
    """The record was there, and neither job nor event; or the event alone."""
    session = await socket.open()
    job = (await socket.call("tools/call", **call_of(session, "k")))["job"]
    js = rig.bus.client.jetstream()
    await js.purge_stream(JOBS)
    await js.purge_stream("SESSIONS")
    # The store remembers the id of the job for two minutes, as of one that it has: here it never had it.
    await js.delete_stream(JOBS)
    await rig.bus.ensure()
    await rig.bus.ensure_server("math", 10)

    again = await socket.call("tools/call", **call_of(session, "k"))

    assert again["job"] == job
    assert await rig.bus.unfinished_jobs(session) == [job]
    assert HALF_ACCEPTED_MS < 120_000


@pytest.mark.parametrize("key", ["", "x" * 256, 5])
async def test_a_key_that_cannot_be_one_is_refused(socket: Socket, key: Any) -> None:
    """1 to 255 characters."""
    refused = await socket.refused("tools/call", **call_of(await socket.open(), key))

    assert refused["data"]["type"] == "invalid_params"
    assert "$.idempotencyKey" in refused["message"]


async def test_a_header_that_contradicts_the_body_is_refused(gateway: RunningGateway, socket: Socket) -> None:
    """Which of the two is meant cannot be told."""
    session = await socket.open()
    body = {"server": "math", "name": "add", "arguments": ARGUMENTS, "idempotencyKey": "one"}
    async with gateway.http() as http:
        answer = await http.post(f"/v1/sessions/{session}/jobs", json=body, headers={"Idempotency-Key": "two"})

    assert answer.status_code == 400
    assert "differs from the header Idempotency-Key" in answer.json()["detail"]


async def test_keys_are_kept_as_digests_under_their_session(rig: GatewayRig, socket: Socket) -> None:
    """What a client puts into a key does not show in the store."""
    session = await socket.open()
    await socket.call("tools/call", **call_of(session, "a secret. with > every * thing"))
    [key] = await (await rig.bus.client.jetstream().key_value(IDEMPOTENCY_BUCKET)).keys()

    assert re.fullmatch(rf"{session}\.[0-9a-f]{{32}}", key)
