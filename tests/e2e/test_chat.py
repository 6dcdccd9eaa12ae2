"""Chat turns through the whole system: a client, gateways, workers that are killed, tools in containers."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest

from client import Session, connect
from client.session import DEFAULT_KEY
from tests.cluster import DEADLINE_S, Cluster, Service, run_cluster
from tests.model_server import Call, Calls, Hold, ModelServer, Say, run_model_server
from tests.nats_server import NatsServer

pytestmark = [pytest.mark.docker, pytest.mark.timeout(120)]

CATALOG = """
servers:
  time: {image: mcp-orchestrator/time:local}
  fixture:
    image: mcp-orchestrator/fixture:local
    scope: session
    tools: {echo: {approval: ask}}
"""
HEADERS = {"Authorization": f"Bearer {DEFAULT_KEY}"}


@pytest.fixture
async def cluster(nats_server: NatsServer, docker_host: str, tmp_path: Path) -> AsyncIterator[Cluster]:
    async with run_cluster(nats_server.url, docker_host, tmp_path, CATALOG) as running:
        yield running


@pytest.fixture
async def provider() -> AsyncIterator[ModelServer]:
    async with run_model_server() as running:
        yield running


async def start_worker(cluster: Cluster, provider: ModelServer) -> Service:
    return await cluster.start_worker(
        CHAT_MODEL="openai:test", CHAT_BASE_URL=provider.openai_url, CHAT_API_KEY="sk-not-to-be-seen"
    )


class User:
    """A session with a client that hears everything."""

    def __init__(self, session: Session, http: httpx.AsyncClient) -> None:
        self.session = session
        self.http = http

    async def post(self, path: str, **body: Any) -> httpx.Response:
        return await self.http.post(f"/sessions/{self.session.id}{path}", json=body)

    async def send(self, content: str) -> str:
        answer = await self.post("/chat", content=content)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["job"])

    async def until(self, job: str, type_: str) -> dict[str, Any]:
        """The data of a job's first event of that type."""
        async with asyncio.timeout(DEADLINE_S), aclosing(self.session.follow(job)) as events:
            async for event in events:
                if event.type == type_:
                    return event.data
        raise AssertionError(f"{job} ended without {type_}")

    async def step(self, turn: str, number: int) -> dict[str, Any]:
        """What the turn tells of that answer of its model."""
        async with asyncio.timeout(DEADLINE_S), aclosing(self.session.follow(turn)) as events:
            async for event in events:
                if event.type == "step" and event.data["step"] == number:
                    return event.data
        raise AssertionError(f"{turn} ended without step {number}")

    async def conversation(self) -> list[dict[str, Any]]:
        found = (await self.http.get(f"/sessions/{self.session.id}/conversation")).json()
        messages: list[dict[str, Any]] = found["messages"]
        return messages


async def test_a_model_calls_real_tools_through_a_killed_worker_and_its_answer_reaches_the_client(
    cluster: Cluster, provider: ModelServer
) -> None:
    """The call that had ended is not made again; a tool that asks waits for the user; the next turn knows it all."""
    gateway = await cluster.start_gateway()
    first = await start_worker(cluster, provider)
    held = Hold(Say("It is "), after=1)
    now = Call("time__get_current_time", {"timezone": "UTC"})
    provider.will(Calls([now], text="I look."), held, Calls([Call("fixture__echo", {"text": "hello"})]), Say("Done."))
    async with (
        httpx.AsyncClient(base_url=f"{gateway.url}/v1", headers=HEADERS) as http,
        connect(gateway.url) as session,
    ):
        user = User(session, http)
        turn = await user.send("What time is it?")
        await held.reached.wait()
        busy = await user.post("/chat", content="and?")
        early = await user.post("/chat/calls/0192f0c1e5a0a1b2c3d4e5f6/approve")
        orphans = await cluster.containers()
        os.kill(first.child.pid, signal.SIGKILL)
        await start_worker(cluster, provider)
        [call] = (await user.step(turn, 2))["calls"]
        approved = await user.post(f"/chat/calls/{call['job']}/approve")
        again = await user.post(f"/chat/calls/{call['job']}/approve")
        denied = await user.post(f"/chat/calls/{call['job']}/deny")
        end = await user.until(turn, "result")
        await cluster.until_settled()
        messages = await user.conversation()
        markdown = await http.get(f"/sessions/{session.id}/conversation", headers={"Accept": "text/markdown"})
        await cluster.gone(orphans)

    assert call["ask"] is True
    assert (busy.status_code, busy.json()["type"], busy.json()["job"]) == (409, "turn_in_progress", turn)
    assert (early.status_code, early.json()["type"]) == (404, "unknown_call")
    assert (approved.status_code, again.status_code) == (200, 200)
    assert (denied.status_code, denied.json()["type"]) == (409, "already_decided")
    assert (end["outcome"], end["result"]["content"][0]["text"]) == ("succeeded", "Done.")
    roles = [message["role"] for message in messages]
    assert roles == ["user", "assistant", "tool", "assistant", "tool", "assistant"]
    time, echo = messages[2], messages[4]
    assert (time["server"], time["outcome"]) == ("time", "succeeded")
    assert "UTC" in time["content"][0]["text"]
    assert (echo["server"], echo["outcome"]) == ("fixture", "succeeded")
    assert "*calls time/get_current_time:*" in markdown.text
    asked_last = provider.requests[-1].body["messages"]
    assert [each["role"] for each in asked_last] == ["user", "assistant", "tool", "assistant", "tool"]
    assert provider.requests[-1].headers["authorization"] == "Bearer sk-not-to-be-seen"
    for log in first.child.log.parent.glob("*.log"):
        assert "sk-not-to-be-seen" not in log.read_text()


async def test_a_session_calls_only_what_it_allows(cluster: Cluster, provider: ModelServer) -> None:
    """By hand as well as by its model; files need the whole server."""
    gateway = await cluster.start_gateway()
    await start_worker(cluster, provider)
    provider.will(Say("I can tell the time."))
    allow = ["time/get_current_time"]
    async with httpx.AsyncClient(base_url=f"{gateway.url}/v1", headers=HEADERS) as http:
        opened = (await http.post("/sessions", json={"allow": allow})).json()["session"]
        wrong = await http.post("/sessions", json={"allow": ["Not a server"]})
        async with connect(gateway.url, session=opened) as session:
            user = User(session, http)
            allowed = await session.run("time", "get_current_time", {"timezone": "UTC"})
            call = {"server": "fixture", "name": "echo", "arguments": {"text": "x"}}
            refused = await user.post("/jobs", **call)
            files = await http.put(f"/sessions/{opened}/servers/fixture/files/a", content=b"x")
            await user.until(await user.send("hello"), "result")

    assert allowed.succeeded
    assert wrong.status_code == 400
    assert (refused.status_code, refused.json()["type"]) == (403, "tool_not_allowed")
    assert (files.status_code, files.json()["type"]) == (403, "tool_not_allowed")
    assert [tool["function"]["name"] for tool in provider.requests[0].body["tools"]] == ["time__get_current_time"]


async def test_closing_a_session_ends_its_turn(cluster: Cluster, provider: ModelServer) -> None:
    """And asks the model no further."""
    gateway = await cluster.start_gateway()
    await start_worker(cluster, provider)
    held = Hold(Say("A long answer."), after=2)
    provider.will(held)
    async with (
        httpx.AsyncClient(base_url=f"{gateway.url}/v1", headers=HEADERS) as http,
        connect(gateway.url, keep=True) as session,
    ):
        user = User(session, http)
        turn = await user.send("go")
        await held.reached.wait()
        closed = await session.close()
        async with asyncio.timeout(DEADLINE_S):
            await held.left.wait()
            await cluster.until_settled()

    assert closed == [turn]


async def chat(gateway: Service, lines: str, *options: str) -> tuple[int, str, str]:
    """`orchestrator chat` with what is piped into it: its exit code, stdout, stderr."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "client", "chat", "--url", gateway.url, *options),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(DEADLINE_S):
        out, err = await process.communicate(lines.encode())
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_the_command_line_talks_to_a_model_that_calls_tools(cluster: Cluster, provider: ModelServer) -> None:
    """Text, calls and questions as they come; reopened, it shows what was said."""
    gateway = await cluster.start_gateway()
    await start_worker(cluster, provider)
    now = Call("time__get_current_time", {"timezone": "UTC"})
    provider.will(Calls([now, Call("fixture__echo", {"text": "hi"})], text="I look."), Say("It is noon."))
    code, out, err = await chat(gateway, "What time is it?\ny\n")
    session = err.split("session ")[1].split(";")[0]
    again = await chat(gateway, "/quit\n", "--session", session)

    assert code == 0, err
    assert out.splitlines()[:2] == ["I look.", "It is noon."]
    assert "time/get_current_time" in err
    assert "allow fixture/echo" in out + err
    assert again[0] == 0, again
    assert "> What time is it?" in again[1]
    assert "It is noon." in again[1]


async def test_without_a_model_the_command_line_says_so_and_runs_tools_all_the_same(cluster: Cluster) -> None:
    """By commands that begin with a slash."""
    gateway = await cluster.start_gateway()
    await cluster.start_worker()
    _, _, refused = await chat(gateway, "Hello?\n")
    code, out, err = await chat(gateway, "/time get_current_time timezone=UTC\n/nowhere tool\n/tools time\n")

    assert "no model is configured" in refused
    assert "CHAT_MODEL" in refused
    assert "/help" in refused
    assert '"timezone": "UTC"' in out
    assert "get_current_time" in out
    assert "nowhere" in err
    assert code in (0, 1, 2)
