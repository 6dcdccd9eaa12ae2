"""A call in the foreground: what it leaves behind."""

from __future__ import annotations

import asyncio
import signal

from client import connect, foreground
from tests.unit.client.gateway_double import Store, run_gateway

DEADLINE_S = 10.0


async def test_ctrl_c_has_its_usual_effect_again_when_the_call_is_over() -> None:
    """A download that follows it can be interrupted at once."""
    usual = signal.getsignal(signal.SIGINT)
    store = Store()
    async with asyncio.timeout(DEADLINE_S), run_gateway(store) as gateway, connect(gateway.url) as session:
        async with asyncio.TaskGroup() as group:
            calling = group.create_task(foreground.call(session, "time", "now", {}, as_json=False))
            request = await gateway.held.get()
            queued = await store.emit("job1", "queued", server="time", tool="now")
            await request.answer(job="job1", seq=queued["seq"])
            while signal.getsignal(signal.SIGINT) == usual:
                await asyncio.sleep(0.001)
            await store.emit("job1", "result", outcome="succeeded")
            await calling

        assert signal.getsignal(signal.SIGINT) == usual
