"""Answers of MCP servers that are too large to be held, from real containers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from common import subjects
from common.bus import Bus
from common.object_info import ObjectInfo
from common.schema import Event
from tests.nats_server import NatsServer
from tests.worker_rig import WorkerRig, worker_rig

pytestmark = pytest.mark.docker

MIB = 1024 * 1024
CATALOG = """
servers:
  shared: {image: mcp-orchestrator/fixture:local, scope: shared, pool: {min: 1, max: 1}}
  everything: {image: mcp-orchestrator/everything:local, scope: shared, pool: {min: 1, max: 1}}
"""


@pytest.fixture
async def rig(nats_server: NatsServer, docker_host: str) -> AsyncIterator[WorkerRig]:
    async with worker_rig(nats_server.url, docker_host) as made:
        await made.apply(CATALOG)
        made.start_worker()
        for server in ("shared", "everything"):
            await made.listing(server)
        yield made


async def told(bus: Bus, events: list[Event]) -> bytes:
    """The stream `result` as its events make it up."""
    whole = bytearray()
    for event in events:
        if event.type == "output":
            data = event.data
            assert (data["stream"], data["offset"]) == ("result", len(whole))
            if "text" in data:
                whole += data["text"].encode()
            else:
                [chunk] = await bus.chunks_from(data["object"], data["chunk"], at_most=1)
                whole += chunk.content()
    return bytes(whole)


def answer_of(size: int) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": "x" * size}]}


async def test_an_answer_above_the_threshold_leaves_as_the_jobs_output(rig: WorkerRig) -> None:
    """Whole and in order; the terminal event has its beginning, its size and its digest."""
    job = await rig.enqueue("shared", "big", {"bytes": 3 * MIB}, session=subjects.new_session_id())
    events = await rig.events(job)
    end = events[-1].data
    whole = await told(rig.bus, events)

    assert json.loads(whole)["content"] == answer_of(3 * MIB)["content"]
    assert end["outcome"] == "succeeded"
    assert end["output"] == {"result": {"size": len(whole), "sha256": hashlib.sha256(whole).hexdigest()}}
    assert whole.decode().startswith(end["result"]["content"][0]["text"])


async def test_a_line_of_64_mib_is_an_artifact_and_the_server_lives_on(rig: WorkerRig) -> None:
    """Other calls of the same container are answered as ever."""
    session = subjects.new_session_id()
    job = await rig.enqueue("shared", "big", {"bytes": 64 * MIB}, session=session)
    end = (await rig.events(job))[-1].data
    [_, link] = end["result"]["content"]
    info = await rig.bus.object_info(f"{session}/{job.id}")
    assert isinstance(info, ObjectInfo)
    digest = hashlib.sha256()
    async for piece in rig.bus.read_object(info, 0, info.size):
        digest.update(piece)
    echo = await rig.call("shared", "echo", {"text": "still here"})

    assert end["outcome"] == "succeeded"
    assert (link["type"], link["uri"]) == ("resource_link", f"/v1/sessions/{session}/artifacts/{job.id}")
    assert digest.hexdigest() == end["output"]["result"]["sha256"]
    assert info.size == end["output"]["result"]["size"] > 64 * MIB
    assert info.media_type == "application/json"
    assert echo.data["result"]["content"] == [{"type": "text", "text": "still here"}]


async def test_a_large_answer_of_a_server_in_typescript_is_found_by_its_id(rig: WorkerRig) -> None:
    """It writes the id behind the result, where it is known only when all has passed."""
    text = 'zwölf "Zeilen"\n\\' * 100_000
    job = await rig.enqueue("everything", "echo", {"message": text}, session=subjects.new_session_id())
    events = await rig.events(job)
    whole = json.loads(await told(rig.bus, events))

    assert events[-1].data["outcome"] == "succeeded"
    assert whole["content"] == [{"type": "text", "text": f"Echo: {text}"}]


async def test_a_small_answer_is_an_artifact_where_it_was_asked_for(rig: WorkerRig) -> None:
    """Its JSON."""
    session = subjects.new_session_id()
    job = await rig.enqueue("shared", "echo", {"text": "keep me"}, session=session, artifact=True)
    end = (await rig.events(job))[-1].data
    info = await rig.bus.object_info(f"{session}/{job.id}")
    assert isinstance(info, ObjectInfo)
    whole = b"".join([piece async for piece in rig.bus.read_object(info, 0, info.size)])

    assert json.loads(whole)["content"] == [{"type": "text", "text": "keep me"}]
    assert end["output"]["result"]["artifact"]["uri"] == f"/v1/sessions/{session}/artifacts/{job.id}"
