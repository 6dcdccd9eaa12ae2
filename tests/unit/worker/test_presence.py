"""The worker as others see it: on the bus, and by its probes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from common import headers, subjects
from common.bus import Bus
from common.consumer import Delivery
from tests.nats_server import NatsServer
from tests.unit.common.bus_rig import DEADLINE_S, flushed, make_job, open_bus
from worker.leases import NOT_HELD, TAKEN
from worker.presence import health_server, micro_service

WORKER = "w-1"
HANDOFF = {
    headers.ACK_SUBJECT: "$JS.ACK.somewhere",
    headers.DELIVERED: "3",
    headers.SEQUENCE: "41",
    headers.TRACEPARENT: "00-1-2-03",
}


@pytest.fixture
async def peer(nats_server: NatsServer) -> AsyncIterator[Bus]:
    """Another process's connection."""
    async with open_bus(nats_server) as opened:
        yield opened


async def test_a_worker_answers_to_the_nats_micro_commands(bus: Bus, peer: Bus) -> None:
    """With its id and its own numbers, as they are when it is asked."""
    numbers: dict[str, Any] = {"slots": {"used": 0, "limit": 10}}
    async with micro_service(bus, WORKER, lambda: numbers, lambda _: False):
        await flushed(bus)
        numbers["slots"]["used"] = 2
        [answer] = await peer.gather(subjects.micro_stats("worker"), 0.5)

    assert answer["metadata"]["worker"] == WORKER
    assert answer["endpoints"][0]["data"] == {"slots": {"used": 2, "limit": 10}}


async def test_a_worker_that_has_left_does_not_answer(bus: Bus, peer: Bus) -> None:
    """By that others know that its containers are nobody's, and its leases free."""
    async with micro_service(bus, WORKER, dict, lambda _: True):
        await flushed(bus)
    await flushed(bus)

    async with asyncio.timeout(DEADLINE_S):
        assert await peer.gather(subjects.micro_stats("worker"), 3600) == []
        assert await peer.request(subjects.handoff(WORKER), make_job().encode(), 3600, HANDOFF) is None


@pytest.mark.parametrize(("taken", "answer"), [(True, TAKEN), (False, NOT_HELD)])
async def test_a_job_that_is_handed_over_arrives_as_it_was_delivered(
    bus: Bus, peer: Bus, taken: bool, answer: bytes
) -> None:
    """So that it can be settled here; the answer says whether it was taken."""
    arrived: list[Delivery] = []

    def receive(delivery: Delivery) -> bool:
        arrived.append(delivery)
        return taken

    job = make_job(arguments={"a": 1})
    async with micro_service(bus, WORKER, dict, receive):
        await flushed(bus)
        said = await peer.request(subjects.handoff(WORKER), job.encode(), DEADLINE_S, HANDOFF)

    assert said == answer
    assert arrived == [
        Delivery(
            client=bus.client,
            job=job,
            payload=job.encode(),
            ack_subject="$JS.ACK.somewhere",
            stream_seq=41,
            deliveries=3,
            traceparent="00-1-2-03",
        )
    ]


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x80"])
async def test_what_is_no_job_is_not_taken_over(bus: Bus, peer: Bus, payload: bytes) -> None:
    """A worker of another version keeps it: the answer is neither of the two."""
    async with micro_service(bus, WORKER, dict, lambda _: True):
        await flushed(bus)
        said = await peer.request(subjects.handoff(WORKER), payload, DEADLINE_S, HANDOFF)

    assert said not in (None, TAKEN, NOT_HELD)


async def test_the_probes_tell_alive_from_ready_and_say_why_not() -> None:
    """On the port that was free."""
    reason = "pools are warming up: time"
    async with (
        health_server("127.0.0.1", 0, lambda: reason) as port,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}", timeout=aiohttp.ClientTimeout(DEADLINE_S)) as http,
    ):

        async def probe(path: str) -> tuple[int, str]:
            async with http.get(path) as answer:
                return answer.status, (await answer.text()).strip()

        assert await probe("/livez") == (200, "live")
        assert await probe("/readyz") == (503, "pools are warming up: time")
        reason = ""
        assert await probe("/readyz") == (200, "ready")
        status, metrics = await probe("/metrics")

    assert status == 200
    assert "# TYPE jobs_running gauge" in metrics
    assert "\nservice_ready 1.0\n" in metrics
