"""Several jobs, several workers: limits, leases, readiness, and what is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from common import headers, registry, subjects
from common.catalog import ServerSpec
from common.schema import DeadLetter, Event
from common.streams import TOOLS_BUCKET
from standalone.probe import wait_until_ready, why_not_ready
from tests.nats_server import NatsServer
from tests.ports import free_port
from tests.settled import settled
from tests.worker_rig import DEADLINE_S, WorkerRig, worker_rig
from worker.container import container_spec
from worker.presence import micro_service
from worker.reaper import STORE_LABEL, WORKER_LABEL, Reaper

pytestmark = pytest.mark.docker


@pytest.fixture
async def rig(nats_server: NatsServer, docker_host: str) -> AsyncIterator[WorkerRig]:
    async with worker_rig(nats_server.url, docker_host, ack_wait_s=3, lease_ttl_s=3) as made:
        yield made


def most_at_once(events: list[list[Event]]) -> int:
    """The largest number of jobs that were between `started` and `result` at one moment."""
    changes: list[tuple[int, int]] = []
    for of_job in events:
        started = next(event for event in of_job if event.type == "started")
        changes += [(started.time_ms, 1), (of_job[-1].time_ms, -1)]
    running = most = 0
    for _, change in sorted(changes):
        running += change
        most = max(most, running)
    return most


async def test_the_concurrency_limit_holds_under_two_hundred_queued_jobs(rig: WorkerRig) -> None:
    """Never more jobs at once than WORKER_CONCURRENCY, all of them done."""
    await rig.apply(
        """
servers:
  shared:
    image: mcp-orchestrator/fixture:local
    concurrency: {per_container: 50, per_worker: 50}
"""
    )
    jobs = [await rig.enqueue("shared", "sleep", {"ms": 15}, session=f"s{number % 5}") for number in range(200)]
    rig.start_worker(worker_concurrency=4)
    ended = [await rig.events_of([job for job in jobs if job.session == f"s{number}"]) for number in range(5)]
    events = [events for by_job in ended for events in by_job.values()]

    assert len(events) == 200
    assert {of_job[-1].data["outcome"] for of_job in events} == {"succeeded"}
    assert most_at_once(events) <= 4


async def test_jobs_of_one_session_and_server_start_in_the_order_they_were_accepted(rig: WorkerRig) -> None:
    """FIFO on a shared server too: their starts are stored in that order."""
    await rig.apply("servers: {shared: {image: mcp-orchestrator/fixture:local}}")
    jobs = [await rig.enqueue("shared", "sleep", {"ms": 5}, session="s1") for _ in range(30)]
    rig.start_worker(worker_concurrency=2)
    await rig.events_of(jobs)
    started = [stored.event.job async for stored in rig.bus.replay_session("s1", 0) if stored.event.type == "started"]

    assert started == [job.id for job in jobs]


async def test_a_slow_server_does_not_block_another(rig: WorkerRig) -> None:
    """Each server has its own limit below the process's."""
    await rig.apply(
        """
servers:
  slow: {image: mcp-orchestrator/fixture:local, concurrency: {per_worker: 2}}
  quick: {image: mcp-orchestrator/fixture:local}
"""
    )
    rig.start_worker(worker_concurrency=4)
    await rig.listing("slow")
    await rig.listing("quick")
    slow = [await rig.enqueue("slow", "sleep", {"ms": 60_000}, session="s1", timeout_ms=90_000) for _ in range(6)]
    await rig.until(slow[0], "started")
    ends = [await rig.call("quick", "echo", {"text": "x"}) for _ in range(5)]
    for job in slow:
        await rig.bus.request_cancel(job.session, job.id, 1)

    assert [end.data["outcome"] for end in ends] == ["succeeded"] * 5


async def test_a_leased_container_is_reached_from_either_worker_in_order(rig: WorkerRig) -> None:
    """Whichever worker pulls a job hands it to the holder of the session's lease."""
    await rig.apply("servers: {kept: {image: mcp-orchestrator/fixture:local, scope: session}}")
    rig.start_worker()
    rig.start_worker()
    await rig.workers(2)
    jobs = [await rig.enqueue("kept", "count", session="s1") for _ in range(20)]
    events = await rig.events_of(jobs)

    assert [events[job.id][-1].data["result"]["content"][0]["text"] for job in jobs] == [str(n + 1) for n in range(20)]
    holders = {event.data["worker"] for of_job in events.values() for event in of_job if event.type == "started"}
    assert len(holders) == 1


async def test_the_session_is_told_when_its_state_was_lost_with_its_worker(rig: WorkerRig) -> None:
    """A drained holder is succeeded by the other worker, with a fresh container."""
    await rig.apply("servers: {kept: {image: mcp-orchestrator/fixture:local, scope: session}}")
    rig.start_worker()
    await rig.workers(1)
    await rig.call("kept", "count", session="s1")
    rig.start_worker()
    await rig.workers(2)
    await rig.stop_worker(0)
    events = await rig.events(await rig.enqueue("kept", "count", session="s1"))

    started = next(event for event in events if event.type == "started")
    assert started.data["state_lost"] is True
    assert events[-1].data["result"]["content"][0]["text"] == "1"


async def test_a_worker_whose_containers_are_all_leased_is_ready(rig: WorkerRig) -> None:
    """It has no spare one and may make none: that is full, not cold."""
    await rig.apply(
        """
servers:
  kept: {image: mcp-orchestrator/fixture:local, scope: session, pool: {min: 1, max: 1}}
"""
    )
    port = free_port()
    rig.start_worker(health_port=port)
    await rig.listing("kept")
    await rig.call("kept", "whoami", session="s1")

    async with asyncio.timeout(DEADLINE_S):
        while (await rig.workers(1))[0]["pools"][0]["leases"] == 0:
            continue
    assert await why_not_ready("127.0.0.1", port) == ""


async def test_a_server_that_cannot_be_served_is_told_and_keeps_no_worker_from_being_ready(rig: WorkerRig) -> None:
    """Of a secret that is missing here: the other servers are as good as ever."""
    await rig.apply(
        """
servers:
  shared: {image: mcp-orchestrator/fixture:local}
  secretive: {image: mcp-orchestrator/fixture:local, secrets: {TOKEN: "file:/nowhere"}}
"""
    )
    port = free_port()
    rig.start_worker(health_port=port)
    await rig.listing("shared")
    told = await rig.listing("secretive", status="failed")

    assert told.reason == "secret TOKEN (file:/nowhere) cannot be read on the worker"
    await wait_until_ready("worker", "127.0.0.1", port, DEADLINE_S)
    assert (await rig.call("shared", "echo", {"text": "x"}, session="s1")).data["outcome"] == "succeeded"


async def test_a_worker_is_ready_only_when_what_its_servers_offer_was_told(
    rig: WorkerRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, gateways may refuse calls: in a rolling update the worker before it must not go yet."""
    await rig.apply("servers: {shared: {image: mcp-orchestrator/fixture:local}}")
    telling, let_tell = asyncio.Event(), asyncio.Event()
    tell = registry.publish_listing

    async def tell_when_let(*listing: Any) -> None:
        telling.set()
        await let_tell.wait()
        await tell(*listing)

    monkeypatch.setattr(registry, "publish_listing", tell_when_let)
    port = free_port()
    rig.start_worker(health_port=port)
    async with asyncio.timeout(DEADLINE_S):
        await telling.wait()
    assert (await why_not_ready("127.0.0.1", port)) == "tools are not listed yet: shared"
    let_tell.set()
    await wait_until_ready("worker", "127.0.0.1", port, DEADLINE_S)

    assert (await rig.bus.get(TOOLS_BUCKET, "shared")).value is not None


async def test_a_worker_whose_calls_take_every_container_at_once_is_ready(rig: WorkerRig) -> None:
    """A new worker of a busy fleet never sees a container wait, and is ready all the same."""
    await rig.apply(
        """
servers:
  once: {image: mcp-orchestrator/fixture:local, scope: call, pool: {min: 2, max: 12}}
"""
    )
    jobs = [await rig.enqueue("once", "sleep", {"ms": 200}, session="s1") for _ in range(12)]
    port = free_port()
    rig.start_worker(health_port=port, worker_concurrency=12)
    await wait_until_ready("worker", "127.0.0.1", port, DEADLINE_S)
    ended = [s async for s in rig.bus.replay_session("s1", 0) if s.event.terminal]

    assert len(ended) < len(jobs)
    await rig.events_of(jobs)


async def test_an_idle_lease_is_given_up_and_its_container_removed(rig: WorkerRig) -> None:
    """`idle_s` after its last call."""
    await rig.apply(
        """
servers:
  kept:
    image: mcp-orchestrator/fixture:local
    scope: session
    pool: {min: 0, max: 2}
    timeouts: {idle_s: 0.3}
"""
    )
    rig.start_worker()
    await rig.listing("kept")
    end = await rig.call("kept", "whoami", session="s1")
    assert end.data["outcome"] == "succeeded"

    async with asyncio.timeout(DEADLINE_S):
        while True:
            answers = await rig.bus.gather(subjects.micro_stats("worker"), 0.1)
            [pool] = answers[0]["endpoints"][0]["data"]["pools"]
            if pool["leases"] == 0 and pool["busy"] == 0:
                break


async def test_a_worker_tells_how_it_is_and_how_much_it_has_done(rig: WorkerRig) -> None:
    """What `status/get` shows of it."""
    await rig.apply("servers: {shared: {image: mcp-orchestrator/fixture:local, pool: {min: 0, max: 1}}}")
    rig.start_worker()
    await rig.listing("shared")
    end = await rig.call("shared", "whoami")

    async with asyncio.timeout(DEADLINE_S):
        while True:
            [answer] = await rig.bus.gather(subjects.micro_stats("worker"), 0.1)
            told = answer["endpoints"][0]["data"]
            if told["jobs_ended"]:
                break
    assert end.data["outcome"] == "succeeded"
    assert (told["jobs_ended"], told["not_ready"], told["draining"]) == (1, "", False)
    assert told["memory_bytes"] > 10 * 1024 * 1024
    assert 0 < told["uptime_s"] < DEADLINE_S


@pytest.mark.parametrize(
    ("entry", "error", "words"),
    [
        ("{image: no/such:image}", "container_start_failed", "does not exist"),
        ('{image: "mcp-orchestrator/fixture:local", command: ["/no/such"]}', "container_start_failed", "command"),
        (
            '{image: "mcp-orchestrator/fixture:local", command: [fixture, silent], timeouts: {start_s: 1}}',
            "handshake_failed",
            "within 1 s",
        ),
        (
            '{image: "mcp-orchestrator/fixture:local", command: [fixture, rubbish], timeouts: {start_s: 1}}',
            "handshake_failed",
            "on stdout it printed",
        ),
        ('{image: "mcp-orchestrator/fixture:local", command: [fixture, exit]}', "handshake_failed", "exit code 7"),
    ],
    ids=["no image", "no command", "silent", "rubbish", "exits"],
)
async def test_a_server_that_cannot_start_says_why_in_its_listing_and_to_each_job(
    rig: WorkerRig, entry: str, error: str, words: str
) -> None:
    """The gateways refuse by the listing; a job that was accepted before ends with the same reason."""
    await rig.apply(f"servers: {{bad: {entry}}}")
    rig.start_worker()
    listing = await rig.listing("bad", "failed")
    end = await rig.call("bad", "echo", {"text": "x"})

    assert words in listing.reason
    assert (end.data["outcome"], end.data["error"]["type"]) == ("failed", error)
    assert words in end.data["error"]["message"]


async def test_servers_come_and_go_with_the_catalog_without_a_restart(rig: WorkerRig) -> None:
    """Added, changed and removed while the worker runs."""
    await rig.apply("servers: {one: {image: mcp-orchestrator/fixture:local}}")
    rig.start_worker()
    await rig.listing("one")
    await rig.apply("servers: {two: {image: mcp-orchestrator/fixture:local, scope: call}}")
    await rig.listing("two")
    end = await rig.call("two", "echo", {"text": "x"})
    assert end.data["outcome"] == "succeeded"

    async with asyncio.timeout(DEADLINE_S):
        while [pool["server"] for pool in (await rig.workers(1))[0]["pools"]] != ["two"]:
            pass


async def test_a_message_that_is_no_job_is_dead_lettered_and_the_worker_goes_on(rig: WorkerRig) -> None:
    """Its bytes are kept, its job ends, the next job runs."""
    await rig.apply("servers: {shared: {image: mcp-orchestrator/fixture:local}}")
    rig.start_worker()
    await rig.listing("shared")
    js = rig.bus.client.jetstream()
    await js.publish(subjects.jobs("shared", "s1"), b"\xc1 no msgpack", headers={headers.MSG_ID: "badjob"})
    end = await rig.call("shared", "echo", {"text": "x"})
    message = await js.get_last_msg("DEAD_LETTERS", subjects.dead("shared", "s1"))
    last = await rig.bus.last_event("s1", "badjob")

    assert message.data is not None
    letter = DeadLetter.decode(message.data)
    assert (letter.job, letter.payload) == ("badjob", b"\xc1 no msgpack")
    assert last is not None
    assert last.event.data["outcome"] == "dead_lettered"
    assert end.data["outcome"] == "succeeded"
    assert await rig.bus.queue_depth("shared") == (0, 0)


async def test_containers_of_a_worker_that_is_gone_are_reaped(rig: WorkerRig) -> None:
    """A worker that was killed leaves its containers to the next one, which waits until its jobs are anybody's."""
    await rig.apply("servers: {kept: {image: mcp-orchestrator/fixture:local, scope: session}}")
    spec = ServerSpec(image="mcp-orchestrator/fixture:local")
    labels = {WORKER_LABEL: "w-gone", STORE_LABEL: rig.bus.epoch}
    orphan = await rig.engine.create(container_spec("kept", spec, {}, None, labels))
    rig.start_worker(reap_period_s=0.2, ack_wait_s=1, lease_ttl_s=1)

    async with asyncio.timeout(DEADLINE_S):
        while await rig.engine.inspect(orphan) is not None:
            await rig.workers(1)  # a look takes a moment, so this is no busy loop


async def test_containers_of_a_worker_that_was_away_for_a_moment_are_left_alone(rig: WorkerRig) -> None:
    """Silent at one look, back at the next: its calls run on."""
    await rig.apply("servers: {kept: {image: mcp-orchestrator/fixture:local, scope: session}}")
    spec = ServerSpec(image="mcp-orchestrator/fixture:local")
    labels = {WORKER_LABEL: "w-away", STORE_LABEL: rig.bus.epoch}
    kept = await rig.engine.create(container_spec("kept", spec, {}, None, labels))
    reaper = Reaper(rig.bus, rig.engine, "w-other", 1.0, list)
    reaper._silence_s = 3600.0
    await reaper.look()
    await reaper.look()  # silent, and not for long enough
    async with micro_service(rig.bus, "w-away", dict, lambda _: False):
        await settled(rig.bus)
        reaper._silence_s = 0.0
        await reaper.look()  # back
    assert await rig.engine.inspect(kept) is not None
    await settled(rig.bus)
    await reaper.look()  # gone for good

    assert await rig.engine.inspect(kept) is None


async def test_a_container_that_came_after_its_pool_had_given_up_on_it_is_removed(rig: WorkerRig) -> None:
    """The engine may make it long after the deadline; what a pool knows, and what is just being made, stays."""
    spec = ServerSpec(image="mcp-orchestrator/fixture:local")
    wanted = container_spec("kept", spec, {}, None, {WORKER_LABEL: "w-1", STORE_LABEL: rig.bus.epoch})
    known, late = await rig.engine.create(wanted), await rig.engine.create(wanted)
    patient = Reaper(rig.bus, rig.engine, "w-1", 1.0, lambda: [known])
    await patient.look()
    await patient.look()
    stays = await rig.engine.inspect(late)
    await Reaper(rig.bus, rig.engine, "w-1", 1.0, lambda: [known], unknown_grace_s=0).look()

    assert stays is not None
    assert await rig.engine.inspect(late) is None
    assert await rig.engine.inspect(known) is not None
    await rig.engine.remove(known)
