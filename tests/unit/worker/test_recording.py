"""A recorded call becomes one message, however often its job is delivered."""

from __future__ import annotations

from common.conversations.repository import Conversations
from common.schema import SessionRecord, now_ms
from common.streams import SESSIONS_BUCKET
from tests.nats_server import NatsServer
from tests.unit.common.bus_rig import SESSION, make_event, make_job, open_bus
from worker.recording import Recording

TTL_S = 600.0


async def test_a_job_that_is_delivered_again_is_recorded_once(nats_server: NatsServer) -> None:
    """Also behind so many large messages that no page holds them all."""
    large = {"role": "user", "content": ["x" * 15_000] * 4}
    async with open_bus(nats_server) as bus:
        conversations = Conversations(bus, compress=True)
        recording = Recording(bus, conversations)
        await bus.put(SESSIONS_BUCKET, SESSION, SessionRecord(tenant="test", created_ms=now_ms()).encode())
        await conversations.append(SESSION, [large] * 40, ttl_s=TTL_S)
        job = make_job(record=True)
        end = make_event(job.id, "result", outcome="succeeded", result={"content": [{"type": "text", "text": "done"}]})
        await bus.publish_event(end, expected=0)

        await recording.record(job, again=False)
        await recording.record(job, again=True)
        page = await conversations.messages(SESSION, after=40)

    assert [(each.number, each.message["job"], each.message["outcome"]) for each in page.messages] == [
        (41, job.id, "succeeded")
    ]
    assert page.messages[0].message["content"] == [{"type": "text", "text": "done"}]


async def test_nothing_is_recorded_of_a_session_that_was_closed(nats_server: NatsServer) -> None:
    """Its conversation is gone, and stays so."""
    async with open_bus(nats_server) as bus:
        conversations = Conversations(bus, compress=True)
        job = make_job(record=True)
        await bus.publish_event(make_event(job.id, "result", outcome="succeeded"), expected=0)
        await Recording(bus, conversations).record(job, again=False)

        assert await conversations.last_number(SESSION) == 0
