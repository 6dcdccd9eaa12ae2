"""Jobs at the gateway: accepted, looked at, cancelled, refused. Workers are played on the bus."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from socket import gethostname
from typing import Any

import pytest

from common import subjects
from common.bus import Bus
from common.consumer import Delivery
from common.errors import Fenced
from common.schema import Event, now_ms
from tests.gateway_rig import GatewayRig, RunningGateway, Socket, gateway_rig
from tests.nats_server import NatsServer
from tests.settled import settled

DEADLINE_S = 20.0
TRACEPARENT = f"00-{'a' * 32}-{'b' * 16}-01"


@pytest.fixture
async def rig(nats_server: NatsServer) -> AsyncIterator[GatewayRig]:
    async with gateway_rig(nats_server.url, queue_limit=3) as rig:
        await rig.add_server(tools=[{"name": "add"}, {"name": "slow"}], timeouts={"queue_s": 60, "job_ms": 1_000})
        yield rig


@pytest.fixture
async def gateway(rig: GatewayRig) -> RunningGateway:
    return await rig.start_gateway()


@pytest.fixture
async def socket(gateway: RunningGateway) -> AsyncIterator[Socket]:
    async with gateway.socket() as socket:
        yield socket


async def call(socket: Socket, session: str, **params: Any) -> dict[str, Any]:
    return await socket.call("tools/call", **{"session": session, "server": "math", "name": "add", **params})


async def delivery(bus: Bus, server: str = "math") -> Delivery:
    """The next job of the server, as a worker gets it."""
    async with asyncio.timeout(5), bus.consume_jobs(server, lambda: 1) as deliveries:
        async for found in deliveries:
            return found
    raise AssertionError("the consumer ended")


async def test_an_accepted_call_is_in_the_queue_with_all_that_a_worker_needs(rig: GatewayRig, socket: Socket) -> None:
    """The answer comes after the store has it: arguments, _meta, deadlines, trace and the number of `queued`."""
    session = await socket.open()
    meta = {"progressToken": 7, "traceparent": TRACEPARENT}

    accepted = await call(socket, session, arguments={"a": [1, None]}, _meta=meta)
    event = await socket.event()
    taken = await delivery(rig.bus)

    job = taken.job
    assert (event["type"], event["job"], event["seq"], event["attempt"]) == (
        "queued",
        accepted["job"],
        accepted["seq"],
        0,
    )
    assert event["data"] == {"server": "math", "tool": "add"}
    assert (job.id, job.session, job.tenant) == (accepted["job"], session, "acme")
    assert (job.server, job.tool, job.arguments, job.meta) == ("math", "add", {"a": [1, None]}, meta)
    assert job.timeout_ms == 1_000
    assert job.start_by_ms - job.created_ms == 60_000
    assert taken.traceparent == TRACEPARENT


@pytest.mark.parametrize("broken", ["x", f"{TRACEPARENT}\r\nNats-Msg-Id: evil", 7])
async def test_a_broken_traceparent_does_not_travel(rig: GatewayRig, socket: Socket, broken: Any) -> None:
    """It would stand in a header of the job's message."""
    await call(socket, await socket.open(), _meta={"traceparent": broken})

    taken = await delivery(rig.bus)

    assert taken.traceparent is None


async def test_a_full_queue_refuses_the_next_call_and_only_that_sessions(rig: GatewayRig, socket: Socket) -> None:
    """The refusal tells limit, depth and when to come back; nothing of the refused job is kept."""
    session, other = await socket.open(), await socket.open()
    for _ in range(3):
        await call(socket, session)

    error = await socket.refused("tools/call", session=session, server="math", name="add")
    await call(socket, other)

    data = error["data"]
    assert (error["code"], data["type"], data["retryable"]) == (429, "queue_full", True)
    assert (data["limit"], data["depth"], data["server"]) == (3, 3, "math")
    assert data["retry_after_s"] > 0
    assert await rig.queued("math") == 4


async def test_a_call_that_no_message_of_the_store_can_hold_is_refused(
    rig: GatewayRig,
) -> None:
    """NATS's max_payload bounds a job, whatever the gateway's own limit is."""
    gateway = await rig.start_gateway(max_request_bytes=16_000_000)
    async with gateway.socket() as socket:
        session = await socket.open()
        error = await socket.refused(
            "tools/call", session=session, server="math", name="add", arguments={"text": "x" * 8_388_608}
        )

    assert (error["code"], error["data"]["type"]) == (413, "payload_too_large")
    assert error["data"]["size"] > error["data"]["limit"]
    assert await rig.queued("math") == 0


async def test_a_server_that_no_worker_has_listed_is_not_ready(rig: GatewayRig, socket: Socket) -> None:
    """It is in the catalog, so it is known; a listing of the entry of before says nothing about it."""
    session = await socket.open()
    await rig.apply_entry("math", image="another")
    await socket.until_status("math", "unlisted")

    error = await socket.refused("tools/call", session=session, server="math", name="add")
    listed = await socket.refused("tools/list", server="math")

    assert (error["code"], error["data"]["type"]) == (503, "server_not_ready")
    assert error["data"]["reason"] == listed["data"]["reason"] == "no worker has listed its tools yet"


async def test_a_server_that_no_worker_can_start_is_not_ready_and_says_why(rig: GatewayRig, socket: Socket) -> None:
    """The worker's reason reaches the caller."""
    await rig.publish_listing("math", status="failed", reason="no such image: none")
    await socket.until_status("math", "failed")

    error = await socket.refused("tools/call", session=await socket.open(), server="math", name="add")

    assert error["data"]["reason"] == "no such image: none"


async def test_a_server_that_is_added_or_removed_is_seen_without_a_restart(rig: GatewayRig, socket: Socket) -> None:
    """The catalog is followed."""
    await rig.add_server("fresh")
    await socket.until_status("fresh", "ready")
    await rig.remove_server("fresh")
    async with asyncio.timeout(5):
        while "fresh" in [server["name"] for server in (await socket.call("servers/list"))["servers"]]:
            continue

    error = await socket.refused("tools/list", server="fresh")

    assert error["data"]["type"] == "unknown_server"


async def test_a_listing_is_answered_as_the_server_gave_it(rig: GatewayRig, socket: Socket) -> None:
    """Unknown fields of a tool are kept."""
    assert await socket.call("tools/list", server="math") == {
        "server": "math",
        "tools": [{"name": "add"}, {"name": "slow"}],
        "serverInfo": {"name": "math", "version": "1"},
    }


async def test_a_job_is_shown_as_its_newest_event_tells(rig: GatewayRig, socket: Socket) -> None:
    """State, attempt and number follow the events; the outcome is there at the end."""
    session = await socket.open()
    accepted = await call(socket, session)
    job = accepted["job"]
    queued = await socket.call("job/get", session=session, job=job)
    started_seq = await rig.start_job(session, job)
    started = await socket.call("job/get", session=session, job=job)
    result = {"content": [{"type": "text", "text": "3"}]}
    output = {"stdout": {"size": 3, "sha256": "ab"}}
    await rig.end_job(session, job, result=result, timings={"queue_ms": 1}, ran={"image": "none"}, output=output)
    ended = await socket.call("job/get", session=session, job=job)

    common = {"job": job, "server": "math", "tool": "add"}
    assert queued == {**common, "state": "queued", "attempt": 0, "seq": accepted["seq"]}
    assert started == {**common, "state": "started", "attempt": 1, "seq": started_seq}
    assert ended | {"seq": 0} == {
        **common,
        "state": "result",
        "attempt": 1,
        "seq": 0,
        "outcome": "succeeded",
        "result": result,
        "timings": {"queue_ms": 1},
        "output": output,
    }


async def test_a_job_of_another_session_is_unknown(socket: Socket) -> None:
    """A job is reached through its own session only."""
    session, other = await socket.open(), await socket.open()
    job = (await call(socket, session))["job"]

    refusals = [await socket.refused(method, session=other, job=job) for method in ("job/get", "job/cancel")]

    assert {(refusal["code"], refusal["data"]["type"]) for refusal in refusals} == {(404, "unknown_job")}


async def test_cancelling_a_queued_job_ends_it_at_once(rig: GatewayRig, socket: Socket) -> None:
    """The terminal event is stored, and the job is gone from the queue: no worker will ever see it."""
    session = await socket.open()
    first, second = (await call(socket, session))["job"], (await call(socket, session))["job"]

    cancelled = await socket.call("job/cancel", session=session, job=second)
    events = await socket.events(3)
    again = await socket.call("job/cancel", session=session, job=second)
    shown = await socket.call("job/get", session=session, job=second)

    assert cancelled == again == {"job": second, "state": "result"}
    assert (events[-1]["job"], events[-1]["type"], events[-1]["data"]) == (second, "result", {"outcome": "cancelled"})
    assert shown["outcome"] == "cancelled"
    assert await rig.queued("math") == 1
    assert (await delivery(rig.bus)).job.id == first


async def test_cancelling_a_running_job_tells_its_worker(rig: GatewayRig, socket: Socket) -> None:
    """The gateway does not end it: the worker does, when it has proof. Twice is as once; the wish itself is kept."""
    session = await socket.open()
    job = (await call(socket, session))["job"]
    await rig.start_job(session, job)
    asked = await rig.bus.client.subscribe(subjects.ALL_LIVE_CANCELS)
    await settled(rig.bus)

    answers = [await socket.call("job/cancel", session=session, job=job) for _ in range(2)]

    assert answers == [{"job": job, "state": "started"}] * 2
    told = await asked.next_msg(timeout=5)
    assert told.subject == subjects.cancel_event(session, job).replace("sessions", "live", 1)
    await settled(rig.bus)
    assert asked.pending_msgs == 0
    assert await rig.bus.cancel_requested(session, job)


async def test_cancelling_after_the_end_changes_nothing(rig: GatewayRig, socket: Socket) -> None:
    """A finished job stays as it ended."""
    session = await socket.open()
    job = (await call(socket, session))["job"]
    await rig.start_job(session, job)
    seq = await rig.end_job(session, job)

    cancelled = await socket.call("job/cancel", session=session, job=job)

    shown = await socket.call("job/get", session=session, job=job)
    assert cancelled == {"job": job, "state": "result"}
    assert (shown["outcome"], shown["seq"]) == ("succeeded", seq)


async def test_of_a_cancel_and_a_start_at_the_same_time_exactly_one_wins(rig: GatewayRig, socket: Socket) -> None:
    """The store's fence decides: either the job ended `cancelled` and cannot start, or it started and goes on."""
    session = await socket.open()
    for _ in range(30):
        accepted = await call(socket, session)
        job = accepted["job"]
        async with asyncio.TaskGroup() as tasks:
            cancelling = tasks.create_task(socket.call("job/cancel", session=session, job=job))
            starting = tasks.create_task(_try_to_start(rig, session, job))

        started, state = starting.result(), cancelling.result()["state"]
        assert state == ("started" if started else "result")
        await rig.bus.withdraw_job("math", session, job)


async def _try_to_start(rig: GatewayRig, session: str, job: str) -> bool:
    started = Event(job=job, session=session, attempt=1, type="started", time_ms=now_ms(), data={})
    try:
        await rig.bus.publish_event(started, expected=0)
    except Fenced:
        return False
    return True


async def test_the_status_tells_of_gateway_workers_and_queues(rig: GatewayRig, socket: Socket) -> None:
    """Workers are asked over NATS's micro protocol; queues are JetStream's own numbers."""

    await rig.add_worker(pools=[], draining=False)
    await call(socket, await socket.open())

    status = await socket.call("status/get")

    assert status["gateway"].pop("uptime_s") >= 0
    assert status["gateway"] == {
        "host": gethostname(),
        "connected": True,
        "reason": "",
        "draining": False,
        "connections": 1,
        "sessions": 1,
        "durability": {"level": "process", "weaknesses": []},
    }
    assert status["workers"] == [{"id": "w-1", "host": "", "version": "", "draining": False, "pools": []}]
    assert 0 <= status["queues"][0].pop("oldest_s") < DEADLINE_S
    assert status["queues"] == [
        {"server": "math", "waiting": 1, "running": 0},
        {"server": "chat", "waiting": 0, "running": 0, "oldest_s": None},
    ]


async def test_the_status_tells_in_what_the_store_is_weaker_than_asked_for(rig: GatewayRig) -> None:
    """It starts and serves all the same, and tells it as a metric too."""
    gateway = await rig.start_gateway(durability="power", nats_replicas=1)
    async with gateway.socket() as socket, asyncio.timeout(DEADLINE_S):
        while not (durability := (await socket.call("status/get"))["gateway"]["durability"])["weaknesses"]:
            pass
        async with gateway.http(None) as http:
            metrics = (await http.get("/metrics")).text

    assert durability["level"] == "power"
    [weakness] = durability["weaknesses"]
    assert weakness.startswith("NATS_MONITOR_URL is not set")
    assert "\ndurability_weaknesses 1.0\n" in metrics


async def test_large_arguments_are_checked_without_holding_up_others(rig: GatewayRig, gateway: RunningGateway) -> None:
    """A megabyte takes jsonschema about a second; the gateway answers others meanwhile."""
    numbers = {"name": "sum", "inputSchema": {"properties": {"of": {"type": "array", "items": {"type": "integer"}}}}}
    await rig.add_server("sums", tools=[numbers])
    async with gateway.socket() as busy, gateway.socket() as quick, asyncio.TaskGroup() as tasks:
        session = await busy.open()
        await quick.until_status("sums", "ready")
        arguments = {"of": [1] * 300_000 + ["x"]}
        large = tasks.create_task(
            busy.refused("tools/call", session=session, server="sums", name="sum", arguments=arguments)
        )
        answered = 0
        while not large.done():
            await quick.call("servers/list")
            answered += 1

    assert large.result()["data"]["problems"][0]["path"] == "$.of[300000]"
    assert answered > 10


async def test_a_schema_that_is_invalid_does_not_stand_in_the_way(rig: GatewayRig, socket: Socket) -> None:
    """The tool itself judges then."""
    await rig.add_server("odd", tools=[{"name": "broken", "inputSchema": {"type": "no such type"}}])
    await socket.until_status("odd", "ready")
    session = await socket.open()

    await call(socket, session, server="odd", name="broken", arguments={"anything": 1})

    assert (await delivery(rig.bus, "odd")).job.arguments == {"anything": 1}
