"""A worker looks whether the store keeps to its level."""

from __future__ import annotations

import asyncio

from common import metrics
from tests.nats_server import NatsServer
from tests.unit.common.bus_rig import counted, until
from worker import app
from worker.settings import WorkerSettings


async def test_a_worker_tells_in_what_the_store_is_weaker_than_asked_for(nats_server: NatsServer) -> None:
    """As a metric, and it runs and stops all the same."""
    metrics.DURABILITY_WEAKNESSES.set(0)
    settings = WorkerSettings(
        nats_url=nats_server.url,
        durability="power",
        nats_replicas=1,
        docker_host="unix:///nowhere.sock",
        health_port=0,
    )
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(app.run(settings, stop))
        await until(lambda: counted("durability_weaknesses") == 1)
        assert not running.done()
        stop.set()
