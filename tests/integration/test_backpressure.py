"""Bounds on what is let in, through real gateways: what is refused, what the refusal says, and what passes again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.gateway_rig import GatewayRig, RunningGateway, Socket, gateway_rig
from tests.nats_server import NatsServer

CALL = {"server": "math", "name": "add", "arguments": {"a": 1, "b": 2}}


@pytest.fixture
async def rig(nats_server: NatsServer) -> AsyncIterator[GatewayRig]:
    async with gateway_rig(nats_server.url, queue_limit=8, max_jobs_in_flight=12) as rig:
        await rig.add_server("math")
        await rig.add_server("more")
        yield rig


async def refusals_of(socket: Socket, session: str, count: int, **params: Any) -> list[dict[str, Any]]:
    """The refusals of so many calls in a row; the others were accepted."""
    answers = [await socket.request("tools/call", session=session, **{**CALL, **params}) for _ in range(count)]
    return [answer["error"] for answer in answers if "error" in answer]


async def fill(socket: Socket, session: str) -> None:
    """As many jobs as the session may have."""
    assert await refusals_of(socket, session, 6) == []
    assert await refusals_of(socket, session, 6, server="more") == []


async def end_one(rig: GatewayRig, session: str) -> None:
    """A job of the session leaves the queue."""
    oldest = await rig.bus.oldest_job_seq("math", session)
    assert oldest is not None
    await rig.bus.delete_job(oldest)


# --- over WebSocket -------------------------------------------------------------------------------------------


async def test_a_session_with_too_many_jobs_over_all_servers_is_refused_the_next_one(rig: GatewayRig) -> None:
    """Neither server's own limit is reached. Another session goes on; a job that ends makes room for one."""
    gateway = await rig.start_gateway()
    async with gateway.socket() as socket:
        session, other = await socket.open(), await socket.open()
        await fill(socket, session)
        error = await socket.refused("tools/call", session=session, **CALL)
        await socket.call("tools/call", session=other, **CALL)
        await end_one(rig, session)
        [again] = await refusals_of(socket, session, 2)

    assert (error["code"], error["data"]["type"], error["data"]["retryable"]) == (429, "too_many_jobs", True)
    assert (error["data"]["limit"], error["data"]["depth"]) == (12, 12)
    assert error["data"]["retry_after_s"] > 0
    assert again["data"]["type"] == "too_many_jobs"
    assert await rig.bus.count_jobs(session) == 12


async def test_the_queue_of_one_server_is_full_before_the_session_is(rig: GatewayRig) -> None:
    """The store's own refusal; the place of a refused call is free for another server."""
    gateway = await rig.start_gateway()
    async with gateway.socket() as socket:
        session = await socket.open()
        refusals = await refusals_of(socket, session, 11)
        others = await refusals_of(socket, session, 5, server="more")

    assert [refusal["data"]["type"] for refusal in refusals] == ["queue_full"] * 3
    assert [refusal["data"]["type"] for refusal in others] == ["too_many_jobs"]


async def test_a_limit_holds_through_whichever_gateway(rig: GatewayRig) -> None:
    """One that has not seen the session before asks the store first."""
    one, two = await rig.start_gateway(), await rig.start_gateway()
    async with one.socket() as first, two.socket() as second:
        session = await first.open()
        await second.open(session=session)
        await fill(first, session)
        [error] = await refusals_of(second, session, 1)

    assert (error["data"]["type"], error["data"]["depth"]) == ("too_many_jobs", 12)


async def test_of_fifty_calls_at_once_exactly_the_limit_passes(rig: GatewayRig) -> None:
    """Over all sockets of one gateway."""
    gateway = await rig.start_gateway()
    async with gateway.socket() as one, gateway.socket() as two:
        session = await one.open()
        await two.open(session=session)

        async def burst(socket: Socket) -> list[dict[str, Any]]:
            """25 calls, their answers read only then."""
            for number in range(25):
                server = "math" if number % 2 else "more"
                await socket.send_request(f"c{number}", "tools/call", session=session, **{**CALL, "server": server})
            return [await socket.answer() for _ in range(25)]

        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            bursts = [tasks.create_task(burst(socket)) for socket in (one, two)]
    answers = [answer for burst in bursts for answer in burst.result()]
    refusals = [answer["error"]["data"] for answer in answers if "error" in answer]

    assert len(answers) - len(refusals) == await rig.bus.count_jobs(session) == 12
    assert {refusal["type"] for refusal in refusals} == {"too_many_jobs"}


async def test_a_repeated_call_whose_job_was_accepted_is_answered_at_the_limit_too(rig: GatewayRig) -> None:
    """It adds nothing, through either gateway; a new key is refused, and its repetition passes when there is room."""
    one, two = await rig.start_gateway(), await rig.start_gateway()
    async with one.socket() as first, two.socket() as second:
        session = await first.open()
        await second.open(session=session)
        mine = await first.call("tools/call", session=session, idempotencyKey="mine", **CALL)
        assert await refusals_of(first, session, 5) == []
        assert await refusals_of(first, session, 6, server="more") == []
        repeated = [
            await socket.call("tools/call", session=session, idempotencyKey="mine", **CALL)
            for socket in (first, second, first)
        ]
        [error] = await refusals_of(first, session, 1, idempotencyKey="next")
        await end_one(rig, session)
        await first.call("tools/call", session=session, idempotencyKey="next", **CALL)

    assert repeated == [mine] * 3
    assert error["data"]["type"] == "too_many_jobs"
    assert await rig.bus.count_jobs(session) == 12


async def test_calls_with_one_key_at_once_need_one_place(rig: GatewayRig) -> None:
    """The last one: all get the same job."""
    gateway = await rig.start_gateway(max_jobs_in_flight=1)
    async with gateway.socket() as socket:
        session = await socket.open()
        for number in range(10):
            await socket.send_request(f"c{number}", "tools/call", session=session, idempotencyKey="one", **CALL)
        answers = [await socket.answer() for _ in range(10)]

    assert len({answer["result"]["job"] for answer in answers}) == 1
    assert await rig.bus.count_jobs(session) == 1


async def test_a_tenant_that_calls_too_fast_is_refused_whatever_its_session(rig: GatewayRig) -> None:
    """Another tenant goes on; so does everything but calls."""
    gateway = await rig.start_gateway(tenant_rate=0.01, tenant_burst=2)
    async with gateway.socket() as socket, gateway.socket("umbra-key") as other:
        for _ in range(2):
            await socket.call("tools/call", session=await socket.open(), **CALL)
        [error] = await refusals_of(socket, await socket.open(), 1)
        await socket.call("servers/list")
        assert await refusals_of(other, await other.open(), 2) == []

    assert (error["code"], error["data"]["type"], error["data"]["retryable"]) == (429, "rate_limited", True)
    assert (error["data"]["limit"], error["data"]["depth"], error["data"]["rate_per_s"]) == (2, 2, 0.01)
    assert 95 < error["data"]["retry_after_s"] <= 100
    assert await rig.queued("math") == 4


async def test_each_gateway_counts_a_tenants_rate_for_itself(rig: GatewayRig) -> None:
    """As the document says: the rate is one gateway's protection."""
    settings = {"tenant_rate": 0.01, "tenant_burst": 1}
    gateways = [await rig.start_gateway(**settings) for _ in range(2)]
    passed = 0
    for gateway in gateways:
        async with gateway.socket() as socket:
            passed += 3 - len(await refusals_of(socket, await socket.open(), 3))

    assert passed == 2


async def test_without_a_rate_nobody_is_too_fast(rig: GatewayRig) -> None:
    """TENANT_RATE=0: what is refused is refused by the other bounds."""
    gateway = await rig.start_gateway(tenant_rate=0, tenant_burst=1)
    async with gateway.socket() as socket:
        session = await socket.open()

        assert {error["data"]["type"] for error in await refusals_of(socket, session, 20)} == {"queue_full"}


# --- over HTTP ------------------------------------------------------------------------------------------------


async def post(gateway: RunningGateway, session: str, count: int, **params: Any) -> tuple[int, dict[str, Any], str]:
    """The last answer to so many calls: status, body, and when to come back."""
    async with gateway.http() as http:
        for _ in range(count):
            answer = await http.post(f"/v1/sessions/{session}/jobs", json={**CALL, **params})
    return answer.status_code, answer.json(), answer.headers.get("Retry-After", "")


async def open_session(gateway: RunningGateway) -> str:
    async with gateway.http() as http:
        return str((await http.post("/v1/sessions")).json()["session"])


async def test_over_http_a_full_queue_says_limit_depth_and_retry_after(rig: GatewayRig) -> None:
    """In the header whole seconds, never 0; in the body as it is."""
    gateway = await rig.start_gateway()
    status, body, retry_after = await post(gateway, await open_session(gateway), 9)

    assert (status, body["type"], body["status"], body["retryable"]) == (429, "queue_full", 429, True)
    assert (body["limit"], body["depth"], body["server"], body["retry_after_s"]) == (8, 8, "math", 1.0)
    assert retry_after == "1"


async def test_over_http_too_many_jobs_say_limit_depth_and_retry_after(rig: GatewayRig) -> None:
    """Counted over all servers."""
    gateway = await rig.start_gateway()
    session = await open_session(gateway)
    await post(gateway, session, 8)
    status, body, retry_after = await post(gateway, session, 5, server="more")

    assert (status, body["type"], body["limit"], body["depth"]) == (429, "too_many_jobs", 12, 12)
    assert retry_after == "1"


async def test_over_http_a_rate_says_limit_depth_and_retry_after(rig: GatewayRig) -> None:
    """Rounded up: who comes back then passes."""
    gateway = await rig.start_gateway(tenant_rate=0.2, tenant_burst=2)
    status, body, retry_after = await post(gateway, await open_session(gateway), 3)

    assert (status, body["type"], body["limit"], body["depth"]) == (429, "rate_limited", 2, 2)
    assert retry_after == "5"
    assert 4 < body["retry_after_s"] <= 5
