"""Large output on a cluster of three: nothing is lost or out of order when a node that leads is killed meanwhile."""

from __future__ import annotations

import asyncio
import hashlib
import random
from pathlib import Path

import pytest

from common.bus import connect
from common.output import OUTPUT_CHUNK_BYTES
from common.settings import BusSettings
from common.streams import ARTIFACTS
from tests.nats_cluster import run_nats_cluster
from tests.unit.common.bus_rig import make_job
from worker import artifacts
from worker.journal import Journal
from worker.outbox import Outbox
from worker.output_stream import OutputLimits

pytestmark = pytest.mark.timeout(150)

DEADLINE_S = 120.0
CHUNKS = 160


async def test_output_goes_on_when_the_node_that_leads_its_store_is_killed(tmp_path: Path) -> None:
    """Events name every chunk in order, and the object is whole for whoever reads it."""
    written = random.Random(1).randbytes(CHUNKS * OUTPUT_CHUNK_BYTES)
    limits = OutputLimits(collect=OUTPUT_CHUNK_BYTES, offer=OUTPUT_CHUNK_BYTES)
    job = make_job(id="j1")
    async with asyncio.timeout(DEADLINE_S), run_nats_cluster(tmp_path) as cluster:
        settings = BusSettings(nats_url=cluster.url, nats_replicas=3)
        async with connect(settings, "test") as bus:
            box = Outbox(bus, job, Journal(bus, job, attempt=1, last_seq=0), limits, 600.0)
            info = (await bus.client.jetstream().stream_info(ARTIFACTS)).cluster
            assert info is not None
            [leader] = [node for node in cluster.nodes if node.name == info.leader]
            async with asyncio.TaskGroup() as tasks:
                pump = tasks.create_task(box.pump())
                for number in range(CHUNKS):
                    if number == CHUNKS // 3:
                        await leader.kill()
                    at = number * OUTPUT_CHUNK_BYTES
                    await box.output("stdout", written[at : at + OUTPUT_CHUNK_BYTES])
                await box.close()
            told = await artifacts.keep_output(bus, job, limits, box.streams.values())
            events = [stored.event async for stored in bus.job_events("s1", "j1")]
            object_info = await bus.object_info("s1/j1")
            assert object_info is not None
            digest = hashlib.sha256()
            async for piece in bus.read_object(object_info, 0, object_info.size):
                digest.update(piece)

    assert pump.result() is None
    ends = [event.data["offset"] + (event.data.get("size") or len(event.data["data"])) for event in events]
    assert [0, *ends[:-1]] == [event.data["offset"] for event in events]
    assert ends[-1] == len(written)
    assert digest.hexdigest() == hashlib.sha256(written).hexdigest() == told["stdout"]["sha256"]
