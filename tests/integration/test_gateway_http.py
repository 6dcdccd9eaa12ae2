"""The HTTP door: resources, problems, and events as Server-Sent Events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from common import subjects
from tests.gateway_rig import DEADLINE_S, GatewayRig, RunningGateway, gateway_rig
from tests.nats_server import NatsServer

LIMIT = 4_096
CALL = {"server": "math", "name": "add", "arguments": {"a": 1, "b": 2}}


@pytest.fixture
async def rig(nats_server: NatsServer) -> AsyncIterator[GatewayRig]:
    async with gateway_rig(nats_server.url, queue_limit=2) as rig:
        await rig.add_server()
        yield rig


@pytest.fixture
async def gateway(rig: GatewayRig) -> RunningGateway:
    return await rig.start_gateway(max_request_bytes=LIMIT)


@pytest.fixture
async def http(gateway: RunningGateway) -> AsyncIterator[httpx.AsyncClient]:
    async with gateway.http() as http:
        yield http


def assert_problem(answer: httpx.Response, status: int, type_: str) -> dict[str, Any]:
    """The body is a problem of that type; its facts."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    body: dict[str, Any] = answer.json()
    assert (body["type"], body["status"]) == (type_, status)
    assert body["title"]
    return body


@dataclass(frozen=True)
class ServerSentEvent:
    id: str
    event: str
    data: dict[str, Any]


@asynccontextmanager
async def event_stream(
    http: httpx.AsyncClient, session: str, last_event_id: str | None = None
) -> AsyncIterator[AsyncIterator[ServerSentEvent]]:
    headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
    async with http.stream("GET", f"/v1/sessions/{session}/events", headers=headers) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-accel-buffering"] == "no"
        yield _events(answer)


async def _events(answer: httpx.Response) -> AsyncIterator[ServerSentEvent]:
    fields: dict[str, str] = {}
    async for line in answer.aiter_lines():
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "event" in fields:
            yield ServerSentEvent(fields["id"], fields["event"], json.loads(fields["data"]))
            fields = {}


async def take(events: AsyncIterator[ServerSentEvent], count: int) -> list[ServerSentEvent]:
    async with asyncio.timeout(DEADLINE_S):
        return [await anext(events) for _ in range(count)]


async def test_a_job_goes_its_way_over_plain_http(rig: GatewayRig, http: httpx.AsyncClient) -> None:
    """Every method of the protocol has its resource and its status."""
    opened = await http.post("/v1/sessions")
    session = opened.json()["session"]
    servers = await http.get("/v1/servers")
    tools = await http.get("/v1/servers/math/tools")
    called = await http.post(f"/v1/sessions/{session}/jobs", json=CALL)
    job = called.json()["job"]
    shown = await http.get(f"/v1/sessions/{session}/jobs/{job}")
    cancelled = await http.delete(f"/v1/sessions/{session}/jobs/{job}")
    status = await http.get("/v1/status")
    closed = await http.delete(f"/v1/sessions/{session}")

    answers = [opened, servers, tools, called, shown, cancelled, status, closed]
    assert [answer.status_code for answer in answers] == [201, 200, 200, 202, 200, 202, 200, 200]
    assert {answer.headers["content-type"] for answer in answers} == {"application/json"}
    assert servers.json()["servers"][0] | {"description": ""} == {
        "name": "math",
        "kind": "mcp",
        "description": "",
        "scope": "shared",
        "status": "ready",
        "reason": "",
    }
    assert tools.json()["tools"][0]["name"] == "add"
    assert shown.json()["state"] == "queued"
    assert cancelled.json() == {"job": job, "state": "result"}
    assert closed.json() == {"session": session, "cancelled": []}


async def test_the_trace_of_a_request_travels_with_its_job(rig: GatewayRig, http: httpx.AsyncClient) -> None:
    """The W3C header of the request is the job's parent."""
    traceparent = f"00-{'a' * 32}-{'b' * 16}-01"
    session = (await http.post("/v1/sessions")).json()["session"]
    await http.post(f"/v1/sessions/{session}/jobs", json=CALL, headers={"traceparent": traceparent})

    async with asyncio.timeout(5), rig.bus.consume_jobs("math", lambda: 1) as deliveries:
        async for delivery in deliveries:
            assert delivery.traceparent == traceparent
            break


@pytest.mark.parametrize(
    ("body", "status", "type_"),
    [
        (b"{", 400, "parse_error"),
        (b"\xff", 400, "parse_error"),
        (b"[]", 400, "invalid_request"),
        (b"", 400, "invalid_params"),
        (b'{"server": "math"}', 400, "invalid_params"),
        (b'{"server": "math", "name": "add", "session": "other"}', 400, "invalid_params"),
        (b'{"server": "math", "name": "add", "more": 1}', 400, "invalid_params"),
        (b'{"server": "math", "name": "add", "arguments": {"a": "1"}}', 400, "invalid_arguments"),
        (b'{"server": "maths", "name": "add"}', 404, "unknown_server"),
        (b'{"server": "math", "name": "ad"}', 404, "unknown_tool"),
        (b'{"server": "math", "name": "' + b"x" * LIMIT + b'"}', 413, "payload_too_large"),
    ],
)
async def test_a_body_that_is_no_call_is_refused_with_a_problem(
    http: httpx.AsyncClient, body: bytes, status: int, type_: str
) -> None:
    """Each kind of bad body has its status and its type, and the connection goes on."""
    session = (await http.post("/v1/sessions")).json()["session"]

    answer = await http.post(f"/v1/sessions/{session}/jobs", content=body)

    problem = assert_problem(answer, status, type_)
    assert problem["detail"]
    assert (await http.get("/v1/servers")).status_code == 200


async def test_every_fault_of_a_body_is_named(http: httpx.AsyncClient) -> None:
    """A problem carries the same facts as the JSON-RPC error."""
    session = (await http.post("/v1/sessions")).json()["session"]

    answer = await http.post(f"/v1/sessions/{session}/jobs", json={"server": 1, "extra": 2})

    problem = assert_problem(answer, 400, "invalid_params")
    assert {fault["path"] for fault in problem["problems"]} == {"$.server", "$.name", "$.extra"}
    assert problem["retryable"] is False


async def test_a_body_without_an_announced_length_is_cut_at_the_limit(http: httpx.AsyncClient) -> None:
    """The answer comes before the body's end, which is never read."""
    session = (await http.post("/v1/sessions")).json()["session"]
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1_024
            yield b"x" * 1_024

    with pytest.raises((httpx.WriteError, httpx.RemoteProtocolError, httpx.ReadError)):
        # httpx sends the whole body before it reads; the gateway has answered and hung up by then.
        await http.post(f"/v1/sessions/{session}/jobs", content=endless())

    assert sent < 50_000_000


@pytest.mark.parametrize("announced", [True, False])
async def test_an_upload_that_is_refused_unread_is_answered_and_hung_up_on(
    gateway: RunningGateway, announced: bool
) -> None:
    """A 401 in the middle of a large body neither waits for its end nor keeps the connection."""
    host, port = gateway.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    length = b"Content-Length: 100000000" if announced else b"Transfer-Encoding: chunked"
    writer.write(b"POST /v1/sessions HTTP/1.1\r\nHost: x\r\n" + length + b"\r\n\r\n")

    async def upload() -> None:
        part = b"x" * 65_536 if announced else b"10000\r\n" + b"x" * 65_536 + b"\r\n"
        try:
            while True:
                writer.write(part)
                await writer.drain()
        except ConnectionError:
            return

    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(upload())
        received = b""
        try:
            while part := await reader.read(4_096):
                received += part
        except ConnectionError:
            pass  # hung up on with our bytes unread
        assert received.startswith(b"HTTP/1.1 401")
    writer.close()


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", "Bearer", "Basic YWNtZS1rZXk=", "acme-key"])
async def test_a_request_without_a_known_key_is_refused(gateway: RunningGateway, authorization: str | None) -> None:
    """Whatever is asked for, and whether it exists or not."""
    headers = {"Authorization": authorization} if authorization else {}
    async with gateway.http(key=None) as http:
        answers = [await http.get(f"/v1/{path}", headers=headers) for path in ("servers", "no/such", "status")]

    for answer in answers:
        assert_problem(answer, 401, "unauthenticated")
        assert answer.headers["www-authenticate"] == "Bearer"


async def test_an_unknown_path_and_a_wrong_verb_are_problems_too(http: httpx.AsyncClient) -> None:
    """RFC 9457: `about:blank` where the status says it all."""
    unknown = await http.get("/v1/no/such")
    wrong = await http.put("/v1/servers")
    head = await http.head("/v1/sessions/s/events")

    assert_problem(unknown, 404, "about:blank")
    assert_problem(wrong, 405, "about:blank")
    assert "GET" in wrong.headers["allow"]
    assert head.status_code == 405


async def test_another_tenants_session_is_as_unknown_as_none(gateway: RunningGateway, http: httpx.AsyncClient) -> None:
    """The answers differ in nothing but the id."""
    async with gateway.http(key="umbra-key") as other:
        theirs = (await other.post("/v1/sessions")).json()["session"]
    none = "0" * 24
    for verb, path in [
        ("GET", "/v1/sessions/{}/events"),
        ("GET", "/v1/sessions/{}/jobs/j"),
        ("DELETE", "/v1/sessions/{}/jobs/j"),
        ("DELETE", "/v1/sessions/{}"),
        ("POST", "/v1/sessions/{}/jobs"),
    ]:
        body = CALL if verb == "POST" else None
        foreign, unknown = [await http.request(verb, path.format(s), json=body) for s in (theirs, none)]
        assert_problem(foreign, 404, "unknown_session")
        assert foreign.text.replace(theirs, none) == unknown.text


async def test_a_full_queue_is_429_with_retry_after(rig: GatewayRig, http: httpx.AsyncClient) -> None:
    """Whole seconds in the header, the facts in the body."""
    session = (await http.post("/v1/sessions")).json()["session"]
    for _ in range(2):
        await http.post(f"/v1/sessions/{session}/jobs", json=CALL)

    answer = await http.post(f"/v1/sessions/{session}/jobs", json=CALL)

    problem = assert_problem(answer, 429, "queue_full")
    assert answer.headers["retry-after"] == "1"
    assert (problem["limit"], problem["depth"], problem["retryable"]) == (2, 2, True)


async def test_an_unlisted_server_is_503_with_retry_after(rig: GatewayRig, http: httpx.AsyncClient) -> None:
    """It may be ready soon."""
    await rig.apply_entry("math", image="another")
    async with asyncio.timeout(5):
        while (answer := await http.get("/v1/servers/math/tools")).status_code == 200:
            continue

    assert_problem(answer, 503, "server_not_ready")
    assert int(answer.headers["retry-after"]) >= 1


async def test_events_are_streamed_with_ids_to_resume_by(rig: GatewayRig, http: httpx.AsyncClient) -> None:
    """First `open`, then each event; with the last id the next stream goes on where this one ended."""
    opened = (await http.post("/v1/sessions")).json()
    session, job = opened["session"], subjects.new_job_id()
    async with event_stream(http, session) as events:
        first = (await take(events, 1))[0]
        seqs = [
            await rig.start_job(session, job),
            await rig.add_event(session, job, "output", stream="stdout", text="a\nb"),
        ]
        started, output = await take(events, 2)
    seqs.append(await rig.end_job(session, job))
    async with event_stream(http, session, last_event_id=started.id) as events:
        again = await take(events, 3)

    epoch = opened["epoch"]
    assert (first.event, first.data["session"], first.data["recovered"]) == ("open", session, False)
    assert [event.id for event in (started, output)] == [f"{epoch}:{seq}" for seq in seqs[:2]]
    assert (output.event, output.data["seq"], output.data["data"]["text"]) == ("output", seqs[1], "a\nb")
    assert (again[0].event, again[0].data["recovered"], again[0].id) == ("open", True, started.id)
    assert [event.data["seq"] for event in again[1:]] == seqs[1:]
    assert again[2].event == "result"


async def test_an_id_of_another_epoch_starts_with_what_is_there(rig: GatewayRig, http: httpx.AsyncClient) -> None:
    """`open` says that nothing was recovered."""
    session = (await http.post("/v1/sessions")).json()["session"]
    seqs = await rig.add_output(session, 2)
    async with event_stream(http, session, last_event_id=f"another:{seqs[1]}") as events:
        opened, *rest = await take(events, 3)

    assert opened.data["recovered"] is False
    assert [event.data["seq"] for event in rest] == seqs


@pytest.mark.parametrize("broken", ["7", "epoch:", ":7", "epoch:-1", "epoch:x", "a b:1", "epoch:1:2"])
async def test_a_malformed_last_event_id_is_refused(http: httpx.AsyncClient, broken: str) -> None:
    """It is not taken for "from now", which would lose events in silence."""
    session = (await http.post("/v1/sessions")).json()["session"]

    answer = await http.get(f"/v1/sessions/{session}/events", headers={"Last-Event-ID": broken})

    problem = assert_problem(answer, 400, "invalid_params")
    assert problem["problems"][0]["path"] == "Last-Event-ID"


async def test_an_idle_event_stream_is_kept_alive(rig: GatewayRig) -> None:
    """Comments, which clients skip, go out while nothing happens."""
    gateway = await rig.start_gateway(event_stream_ping_interval_s=0.05)
    async with gateway.http() as http:
        session = (await http.post("/v1/sessions")).json()["session"]
        async with http.stream("GET", f"/v1/sessions/{session}/events") as answer, asyncio.timeout(5):
            lines = answer.aiter_lines()
            pings = 0
            while pings < 3:
                pings += (await anext(lines)) == ": ping"


async def test_the_status_counts_open_event_streams(http: httpx.AsyncClient) -> None:
    """And forgets them when they are gone."""
    session = (await http.post("/v1/sessions")).json()["session"]
    async with event_stream(http, session) as events:
        await take(events, 1)
        during = (await http.get("/v1/status")).json()["gateway"]
    async with asyncio.timeout(5):
        while (await http.get("/v1/status")).json()["gateway"]["connections"]:
            continue

    assert (during["connections"], during["sessions"]) == (1, 1)


async def test_health_needs_no_key(gateway: RunningGateway) -> None:
    """Probes and Prometheus have none."""
    async with gateway.http(key=None) as http:
        await http.get("/v1/servers")
        livez, readyz, metrics = [await http.get(path) for path in ("/livez", "/readyz", "/metrics")]

    assert (livez.status_code, livez.json()) == (200, {"status": "live"})
    assert (readyz.status_code, readyz.json()) == (200, {"status": "ready"})
    assert 'requests_refused_total{type="unauthenticated"}' in metrics.text
