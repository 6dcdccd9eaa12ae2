"""Jobs that nobody takes end all the same: real gateways on a real store, and no worker at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import common.acceptance
import gateway.sweeper
from common import subjects
from common.bus import Bus
from common.schema import Event, Job, now_ms
from common.streams import JOBS
from tests.gateway_rig import DEADLINE_S, GatewayRig, RunningGateway, Socket, gateway_rig
from tests.job_lines import JobLines, job_lines
from tests.nats_server import NatsServer

ARGUMENTS = {"a": 1, "b": 2}


@pytest.fixture
async def rig(nats_server: NatsServer) -> AsyncIterator[GatewayRig]:
    async with gateway_rig(nats_server.url, sweep_period_s=0.05, ack_wait_s=1) as made:
        yield made


@pytest.fixture
async def socket(rig: GatewayRig) -> AsyncIterator[Socket]:
    started = await rig.start_gateway()
    async with started.socket() as opened:
        yield opened


@pytest.fixture
def told() -> Iterator[JobLines]:
    with job_lines() as lines:
        yield lines


async def call(socket: Socket, session: str, server: str = "math") -> str:
    answer = await socket.call("tools/call", session=session, server=server, name="add", arguments=ARGUMENTS)
    return str(answer["job"])


async def ended(bus: Bus, session: str, job: str) -> Event:
    """The job's terminal event, once it is stored and its message is out of the queue."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            last = await bus.last_event(session, job)
            if last is not None and last.event.terminal and job not in await bus.unfinished_jobs(session):
                return last.event
            await asyncio.sleep(0.02)


async def events_of(bus: Bus, session: str, job: str) -> list[str]:
    return [stored.event.type async for stored in bus.replay_session(session, 0) if stored.event.job == job]


async def put_job(bus: Bus, **fields: Any) -> Job:
    """A job as a gateway would have stored it some time ago."""
    facts = {
        "id": subjects.new_job_id(),
        "session": "s1",
        "tenant": "acme",
        "server": "math",
        "tool": "add",
        "arguments": ARGUMENTS,
        "created_ms": now_ms() - 600_000,
        "start_by_ms": now_ms() - 1,
        "timeout_ms": 1_000,
    }
    job = Job.model_validate(facts | fields)
    await bus.enqueue_job(job)
    return job


async def test_a_job_that_no_worker_takes_ends_at_its_queue_deadline(
    rig: GatewayRig, socket: Socket, told: JobLines
) -> None:
    """No worker runs: the gateway ends it, and takes it out of the queue. One that may still wait, waits."""
    await rig.add_server("math", timeouts={"queue_s": 0.3})
    await rig.add_server("patient", timeouts={"queue_s": 600})
    await socket.until_status("patient", "ready")
    await socket.until_status("math", "ready")
    session = await socket.open()
    patient = await call(socket, session, "patient")
    late = await call(socket, session)

    end = await ended(rig.bus, session, late)

    assert end.data["outcome"] == "timed_out"
    assert end.data["error"]["type"] == "queue_timeout"
    assert end.data["error"]["waited_ms"] >= 300
    assert await events_of(rig.bus, session, late) == ["queued", "result"]
    assert await events_of(rig.bus, session, patient) == ["queued"]
    line = await told.the_one_of(late)
    assert (line["outcome"], line["error"], line["tool"]) == ("timed_out", "queue_timeout", "add")
    assert line["tenant"]
    assert line["total_ms"] >= 300
    assert told.of(patient) == []


async def test_a_tools_own_queue_deadline_is_kept_among_others_of_its_server(rig: GatewayRig, socket: Socket) -> None:
    """One that waits behind a job which may wait longer."""
    tools = {"quick": {"queue_s": 0.2}}
    await rig.apply_entry("math", timeouts={"queue_s": 600}, tools=tools)
    await rig.publish_listing("math", tools=[{"name": name, "inputSchema": {}} for name in ("slow", "quick")])
    await socket.until_status("math", "ready")
    session = await socket.open()
    jobs = [
        (await socket.call("tools/call", session=session, server="math", name=name))["job"]
        for name in ("slow", "quick", "slow")
    ]

    assert (await ended(rig.bus, session, jobs[1])).data["outcome"] == "timed_out"
    assert await rig.bus.unfinished_jobs(session) == [jobs[0], jobs[2]]


async def test_a_worker_that_starts_the_job_in_the_last_moment_has_it(rig: GatewayRig, socket: Socket) -> None:
    """Started is started: the queue deadline does not end a job that runs."""
    await rig.add_server("math", timeouts={"queue_s": 0.3})
    await socket.until_status("math", "ready")
    session = await socket.open()
    job = await call(socket, session)
    await rig.start_job(session, job)
    later = await call(socket, session)  # ended after its deadline, which is after the first one's

    await ended(rig.bus, session, later)

    assert await events_of(rig.bus, session, job) == ["queued", "started"]


async def test_a_job_whose_acknowledgement_was_lost_leaves_the_queue(rig: GatewayRig, socket: Socket) -> None:
    """It has ended: nothing is stored of it any more."""
    await rig.add_server("math", timeouts={"queue_s": 0.2})
    await socket.until_status("math", "ready")
    session = await socket.open()
    job = await call(socket, session)
    await rig.start_job(session, job)
    await rig.end_job(session, job)

    await ended(rig.bus, session, job)

    assert await events_of(rig.bus, session, job) == ["queued", "started", "result"]


async def test_a_job_that_had_started_and_that_nobody_took_over_ends_unknown(
    rig: GatewayRig, socket: Socket, told: JobLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After all that it may take: its run, its wait, and a grace."""
    monkeypatch.setattr(gateway.sweeper, "LOST_GRACE_MS", 100)
    await rig.add_server("math", timeouts={"queue_s": 0.2})
    job = await put_job(rig.bus, timeout_ms=50)
    await rig.start_job("s1", job.id)

    end = await ended(rig.bus, "s1", job.id)

    assert end.data["outcome"] == "outcome_unknown"
    assert (end.data["error"]["worker"], end.data["error"]["attempt"]) == ("w-1", 1)
    assert end.data["error"]["retryable"] is False
    line = await told.the_one_of(job.id)
    assert (line["outcome"], line["attempt"], line["tenant"]) == ("outcome_unknown", 1, "acme")


async def test_a_removed_servers_waiting_jobs_are_dead_lettered(
    rig: GatewayRig, socket: Socket, told: JobLines
) -> None:
    """Nobody reads its queue any more. What cannot even be read goes the same way; other servers' jobs stay."""
    for name in ("math", "other"):
        await rig.add_server(name)
        await socket.until_status(name, "ready")
    session = await socket.open()
    job, kept = await call(socket, session), await call(socket, session, "other")
    await rig.bus.client.jetstream().publish(
        subjects.jobs("math", session), b"\xc1", headers={"Nats-Msg-Id": "unreadable"}
    )
    await rig.remove_server("math")

    end = await ended(rig.bus, session, job)
    unreadable = await ended(rig.bus, session, "unreadable")

    assert (end.data["outcome"], end.data["error"]["type"]) == ("dead_lettered", "server_removed")
    assert (unreadable.data["outcome"], unreadable.data["error"]["type"]) == ("dead_lettered", "undecodable_message")
    for id_ in (job, "unreadable"):
        assert (await told.the_one_of(id_))["outcome"] == "dead_lettered"
    assert await rig.bus.unfinished_jobs(session) == [kept]
    letters = await rig.bus.client.jetstream().stream_info("DEAD_LETTERS", subjects_filter=">")
    assert letters.state.subjects == {subjects.dead("math", session): 2}


async def test_what_runs_of_a_removed_server_is_given_its_time(rig: GatewayRig, socket: Socket) -> None:
    """Its worker drains beside; when it has ended the job, the message that nobody can acknowledge any more goes."""
    await rig.add_server("math")
    await socket.until_status("math", "ready")
    session = await socket.open()
    running, waiting = await call(socket, session), await call(socket, session)
    await rig.start_job(session, running)
    await rig.remove_server("math")

    await ended(rig.bus, session, waiting)
    assert await events_of(rig.bus, session, running) == ["queued", "started"]
    await rig.end_job(session, running)

    assert (await ended(rig.bus, session, running)).data["outcome"] == "succeeded"


async def test_a_queued_event_without_a_job_is_ended(
    rig: GatewayRig, socket: Socket, told: JobLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its gateway died while it accepted the call. One whose job waits is left alone."""
    monkeypatch.setattr(gateway.sweeper, "ORPHAN_AFTER_MS", 100)
    await rig.add_server("math", timeouts={"queue_s": 86_400})
    waiting = await put_job(rig.bus, created_ms=now_ms(), start_by_ms=now_ms() + 600_000)
    orphan = Event(
        job="orphan", session="s1", attempt=0, type="queued", time_ms=now_ms(), data={"server": "math", "tool": "add"}
    )
    await rig.bus.publish_event(orphan, expected=0)

    end = await ended(rig.bus, "s1", "orphan")

    assert (end.data["outcome"], end.data["error"]["type"]) == ("failed", "not_accepted")
    assert end.data["error"]["retryable"] is True
    line = await told.the_one_of("orphan")
    assert (line["outcome"], line["error"], line["server"]) == ("failed", "not_accepted", "math")
    assert await events_of(rig.bus, "s1", waiting.id) == ["queued"]
    assert await rig.bus.unfinished_jobs("s1") == [waiting.id]


async def test_one_gateway_of_many_sweeps_and_another_follows_it(rig: GatewayRig) -> None:
    """The role lapses with its holder."""
    first: RunningGateway = await rig.start_gateway()
    await rig.add_server("math", timeouts={"queue_s": 0.2})
    early = await put_job(rig.bus)
    await ended(rig.bus, "s1", early.id)
    await rig.start_gateway()
    await first.stop()
    late = await put_job(rig.bus)

    end = await ended(rig.bus, "s1", late.id)

    assert end.data["outcome"] == "timed_out"
    assert await events_of(rig.bus, "s1", late.id) == ["queued", "result"]
    assert (await rig.bus.client.jetstream().stream_info(JOBS)).state.messages == 0


def test_an_orphan_is_older_than_what_a_repeated_call_makes_good() -> None:
    """Or a repeated call with an idempotency key might make good what was just ended."""
    assert gateway.sweeper.ORPHAN_AFTER_MS > common.acceptance.HALF_ACCEPTED_MS
