"""A session that records its calls, from the tool to what people read."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from client import connect
from client.session import DEFAULT_KEY
from tests.cluster import Cluster, run_cluster
from tests.e2e.test_commands import run
from tests.nats_server import NatsServer

pytestmark = [pytest.mark.docker, pytest.mark.timeout(120)]

CATALOG = """
servers:
  fixture: {image: mcp-orchestrator/fixture:local}
"""
HEADERS = {"Authorization": f"Bearer {DEFAULT_KEY}"}


@pytest.fixture
async def cluster(nats_server: NatsServer, docker_host: str, tmp_path: Path) -> AsyncIterator[Cluster]:
    async with run_cluster(nats_server.url, docker_host, tmp_path, CATALOG) as running:
        yield running


async def test_calls_of_a_session_that_records_are_in_its_conversation_and_those_of_another_are_not(
    cluster: Cluster,
) -> None:
    """Read as JSON, as Markdown and by the command line; deleted; gone with the session."""
    gateway = await cluster.start_gateway()
    await cluster.start_worker()
    async with httpx.AsyncClient(base_url=f"{gateway.url}/v1", headers=HEADERS) as http:
        opened = (await http.post("/sessions", json={"record": True, "conversation_ttl_s": 600})).json()["session"]
        async with connect(gateway.url, session=opened, keep=True) as session, connect(gateway.url) as other:
            for text in ("first", "second"):
                assert (await session.run("fixture", "echo", {"text": text})).succeeded
                assert (await other.run("fixture", "echo", {"text": "unseen"})).succeeded
            large = await session.run("fixture", "echo", {"text": "x" * 100_000})
            assert large.succeeded
            await cluster.until_settled()

            page = (await http.get(f"/sessions/{opened}/conversation")).json()
            for number in range(40):
                more = await session.run("fixture", "echo", {"text": f"words for a dictionary, number {number}"})
                assert more.succeeded
            await cluster.until_settled()
            nothing = [message async for message in other.conversation.messages()]
        code, shown = await run("client", "conversation", "show", opened, "--url", gateway.url)
        accept = {"Accept": "text/markdown"}
        markdown = await http.get(f"/sessions/{opened}/conversation", params={"limit": 1}, headers=accept)
        trained = await run("client", "conversations", "train-dictionary", "--url", gateway.url)
        assert (await http.delete(f"/sessions/{opened}/conversation")).status_code == 200
        emptied = (await http.get(f"/sessions/{opened}/conversation")).json()

    assert page["faults"] == []
    assert page["after"] is None
    first, second, third = page["messages"]
    assert [first["number"], second["number"], third["number"]] == [1, 2, 3]
    assert (first["role"], first["server"], first["tool"], first["outcome"]) == ("tool", "fixture", "echo", "succeeded")
    assert first["arguments"] == {"text": "first"}
    assert "first" in first["content"][0]["text"]
    assert third["job"] == large.job
    assert third["arguments"]["text"]["part"]["size"] == 100_000
    assert nothing == []
    assert code == 0, shown
    assert "fixture/echo" in shown
    assert json.dumps({"text": "second"}) in shown
    assert markdown.headers["content-type"].startswith("text/markdown")
    assert "## 1. tool fixture/echo: succeeded" in markdown.text
    assert "`after=1`" in markdown.text
    assert trained == (0, "dictionary 1 is in use\n")
    assert emptied["messages"] == []
