"""From the first attempt to the redrive: a real gateway, a real worker, and a server that breaks down each time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from common import subjects
from common.schema import AttemptRecord, Job, now_ms
from tests.gateway_rig import RunningGateway, start_gateway
from tests.nats_server import NatsServer
from tests.worker_rig import WorkerRig, worker_rig

pytestmark = pytest.mark.docker

TRACE = "a" * 32


@pytest.fixture
async def rig(nats_server: NatsServer, docker_host: str) -> AsyncIterator[WorkerRig]:
    async with worker_rig(nats_server.url, docker_host) as made:
        await made.apply("servers: {shared: {image: mcp-orchestrator/fixture:local}}")
        made.start_worker()
        await made.listing("shared")
        yield made


@pytest.fixture
async def gateway(rig: WorkerRig, nats_server: NatsServer) -> AsyncIterator[RunningGateway]:
    async with asyncio.TaskGroup() as tasks:
        started = start_gateway(nats_server.url, tasks)
        await started.until_ready()
        yield started
        await started.stop()


async def test_a_read_only_tool_that_breaks_down_each_time_is_given_up_and_redriven(
    rig: WorkerRig, gateway: RunningGateway
) -> None:
    """Three attempts, each told; the letter has what the server said last and in which image. Redriven it is run as
    attempt 4, and given up once more after 6."""
    async with gateway.socket() as socket:
        session = await socket.open()
        await socket.until_status("shared", "ready")
        accepted = await socket.call(
            "tools/call",
            session=session,
            server="shared",
            name="break_down",
            arguments={"words": "out of ideas"},
            _meta={"traceparent": f"00-{TRACE}-{'b' * 16}-01"},
        )
        told = await socket.events(7)
        end = told[-1]
        [letter] = (await socket.call("dead_letters/list"))["letters"]
        shown = await socket.call("dead_letters/show", letter=letter["letter"])

        assert [(event["type"], event["attempt"]) for event in told] == [
            ("queued", 0),
            ("started", 1),
            ("retrying", 1),
            ("started", 2),
            ("retrying", 2),
            ("started", 3),
            ("result", 3),
        ]
        assert end["data"]["outcome"] == "dead_lettered"
        assert end["data"]["error"] == shown["error"]
        assert (shown["job"], shown["tool"], shown["trace"]) == (accepted["job"], "break_down", TRACE)
        assert shown["error"]["type"] == "too_many_attempts"
        assert shown["stderr"] == "out of ideas"
        started = [event["data"] for event in told if event["type"] == "started"]
        assert shown["image_digest"] == started[0]["image_digest"] != ""
        assert [(each["attempt"], each["container"]) for each in shown["attempts"]] == [
            (number, data["container"]) for number, data in enumerate(started, 1)
        ]
        assert len({data["container"] for data in started}) == 3
        assert {(each["error"]["type"], each["error"]["exit_code"]) for each in shown["attempts"]} == {
            ("server_gone", 3)
        }
        assert all(each["started_ms"] <= each["ended_ms"] for each in shown["attempts"])

        redriven = await socket.call("dead_letters/redrive", letter=letter["letter"])
        told = await socket.events(7)
        [second] = (await socket.call("dead_letters/list"))["letters"]
        shown = await socket.call("dead_letters/show", letter=second["letter"])

        assert {event["job"] for event in told} == {redriven["job"]}
        assert [(event["type"], event["attempt"]) for event in told] == [
            ("queued", 0),
            ("started", 4),
            ("retrying", 4),
            ("started", 5),
            ("retrying", 5),
            ("started", 6),
            ("result", 6),
        ]
        assert told[0]["data"]["redrive_of"] == accepted["job"]
        assert (shown["job"], shown["redrive_of"]) == (redriven["job"], accepted["job"])
        assert [each["attempt"] for each in shown["attempts"]] == [1, 2, 3, 4, 5, 6]
    assert await rig.bus.queue_depth("shared") == (0, 0)


async def test_a_redriven_job_whose_server_works_again_succeeds(rig: WorkerRig, gateway: RunningGateway) -> None:
    """What a redrive is for: the cause is gone, the letter as well, and the session has the answer."""
    call = {"server": "shared", "name": "break_down", "arguments": {"words": "at last"}}
    async with gateway.socket() as socket:
        session = await socket.open()
        await socket.until_status("shared", "ready")
        await socket.call("tools/call", session=session, **call)
        assert (await socket.events(7))[-1]["data"]["outcome"] == "dead_lettered"
        await rig.apply("servers: {shared: {image: mcp-orchestrator/fixture:local, env: {MENDED: '1'}}}")
        await socket.call("dead_letters/redrive", letter="1")
        told = await socket.events(3)
        letters = (await socket.call("dead_letters/list"))["letters"]

    assert [(event["type"], event["attempt"]) for event in told] == [("queued", 0), ("started", 4), ("result", 4)]
    assert (told[-1]["data"]["outcome"], letters) == ("succeeded", [])
    assert told[-1]["data"]["result"]["content"][0]["text"] == "at last"


async def test_a_redriven_job_that_no_worker_takes_in_time_has_no_attempt(rig: WorkerRig) -> None:
    """It ends as attempt 0, as every job that never started, whatever it counts on from."""
    before = AttemptRecord(
        attempt=3, worker="w", engine="e", container="c", image_digest="", started_ms=1, ended_ms=2, error=None
    )
    job = Job(
        id=subjects.new_job_id(),
        session="s1",
        tenant="test",
        server="shared",
        tool="echo",
        arguments={"text": "x"},
        created_ms=now_ms() - 2_000,
        start_by_ms=now_ms() - 1_000,
        timeout_ms=1_000,
        redrive_of="old",
        attempts_before=[before],
    )
    await rig.bus.enqueue_job(job)
    end = (await rig.events(job))[-1]

    assert (end.attempt, end.data["outcome"], end.data["error"]["type"]) == (0, "timed_out", "queue_timeout")
