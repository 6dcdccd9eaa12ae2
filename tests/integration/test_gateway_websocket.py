"""The WebSocket door: what is refused, how, and that the connection lives on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import msgpack
import pytest
from websockets.exceptions import ConnectionClosedError, InvalidStatus

from tests.gateway_rig import GatewayRig, RunningGateway, Socket, gateway_rig
from tests.nats_server import NatsServer

LIMIT = 4_096


@pytest.fixture
async def rig(nats_server: NatsServer) -> AsyncIterator[GatewayRig]:
    async with gateway_rig(nats_server.url) as rig:
        await rig.add_server()
        yield rig


@pytest.fixture
async def gateway(rig: GatewayRig) -> RunningGateway:
    return await rig.start_gateway(max_request_bytes=LIMIT)


@pytest.fixture
async def socket(gateway: RunningGateway) -> AsyncIterator[Socket]:
    async with gateway.socket() as socket:
        yield socket


async def assert_usable(socket: Socket) -> None:
    servers = await socket.call("servers/list")
    assert [server["name"] for server in servers["servers"]] == ["math"]


@pytest.mark.parametrize(
    ("frame", "code", "type_", "answered_id"),
    [
        ("{", -32700, "parse_error", None),
        ("", -32700, "parse_error", None),
        ('{"jsonrpc": "2.0", "id": 1, "method": "servers/list", "params": {"x": NaN}}', -32700, "parse_error", None),
        ('{"jsonrpc": "2.0", "id": "\\ud800", "method": "servers/list"}', -32700, "parse_error", None),
        ("[" * 3_000, -32700, "parse_error", None),
        ("7", -32600, "invalid_request", None),
        ("[]", -32600, "invalid_request", None),
        ('[{"jsonrpc": "2.0", "id": 1, "method": "servers/list"}]', -32600, "invalid_request", None),
        ('{"id": 1, "method": "servers/list"}', -32600, "invalid_request", 1),
        ('{"jsonrpc": "2.0", "method": "servers/list"}', -32600, "invalid_request", None),
        ('{"jsonrpc": "2.0", "id": null, "method": "servers/list"}', -32600, "invalid_request", None),
        ('{"jsonrpc": "2.0", "id": true, "method": "servers/list"}', -32600, "invalid_request", None),
        ('{"jsonrpc": "2.0", "id": 1.5, "method": "servers/list"}', -32600, "invalid_request", None),
        ('{"jsonrpc": "2.0", "id": "a", "result": {}}', -32600, "invalid_request", "a"),
        ('{"jsonrpc": "2.0", "id": "a", "method": 7}', -32600, "invalid_request", "a"),
        ('{"jsonrpc": "2.0", "id": "a", "method": "no/such"}', -32601, "unknown_method", "a"),
        ('{"jsonrpc": "2.0", "id": "a", "method": "servers/list", "params": []}', -32602, "invalid_params", "a"),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "servers/list"}', -32600, "invalid_request", None),
    ],
)
async def test_a_frame_that_is_no_request_is_answered_and_the_socket_lives_on(
    socket: Socket, frame: str | bytes, code: int, type_: str, answered_id: Any
) -> None:
    """Each unusable frame gets its own error, with the id where it has a usable one, and costs nothing else."""
    answer = await socket.ask(frame)

    assert answer["jsonrpc"] == "2.0"
    assert answer["id"] == answered_id
    assert answer["error"]["code"] == code
    assert answer["error"]["data"]["type"] == type_
    assert answer["error"]["data"]["retryable"] is False
    await assert_usable(socket)


@pytest.mark.parametrize(
    ("method", "params", "problems"),
    [
        ("session/close", {}, {"$.session": "Field required"}),
        ("servers/list", {"all": 1}, {"$.all": "Extra inputs are not permitted"}),
        ("tools/list", {"server": 7}, {"$.server": "Input should be a valid string"}),
        ("job/get", {"session": "a.b", "job": ""}, dict.fromkeys(
            ("$.session", "$.job"), "must be 1-64 letters, digits, - or _"
        )),
        ("job/get", {"session": "a\nPUB x 0", "job": "j"}, {"$.session": "must be 1-64 letters, digits, - or _"}),
        ("job/get", {"session": "a\n", "job": "j"}, {"$.session": "must be 1-64 letters, digits, - or _"}),
        ("session/open", {"session": "s", "seq": 1}, {"$": "epoch and seq come together"}),
        ("session/open", {"seq": 1, "epoch": "e"}, {"$": "epoch and seq need the session that they are of"}),
        ("session/open", {"session": "s", "epoch": "e", "seq": True}, {"$.seq": "Input should be a valid integer"}),
        ("session/open", {"session": ["s"]}, {"$.session": "Input should be a valid string"}),
        (
            "tools/call",
            {"session": "s", "server": "math", "arguments": [], "x": 1},
            {
                "$.name": "Field required",
                "$.arguments": "Input should be a valid dictionary",
                "$.x": "Extra inputs are not permitted",
            },
        ),
    ],
)  # fmt: skip
async def test_params_that_do_not_fit_are_answered_with_every_fault_and_its_path(
    socket: Socket, method: str, params: dict[str, Any], problems: dict[str, str]
) -> None:
    """All faults of the params come in one answer, each with where it is."""
    error = await socket.refused(method, **params)

    assert error["code"] == -32602
    assert error["data"]["type"] == "invalid_params"
    assert {p["path"]: p["message"] for p in error["data"]["problems"]} == problems
    await assert_usable(socket)


async def test_a_call_of_an_unknown_server_or_tool_says_what_there_is(socket: Socket) -> None:
    """The message names the known ones, so that a typing mistake is seen."""
    session = await socket.open()

    server = await socket.refused("tools/call", session=session, server="maths", name="add")
    tool = await socket.refused("tools/call", session=session, server="math", name="ad")

    assert (server["code"], server["data"]["type"]) == (-32602, "unknown_server")
    assert server["message"] == "unknown server 'maths'; the catalog has: math"
    assert (tool["code"], tool["data"]["type"]) == (-32602, "unknown_tool")
    assert tool["message"] == "server 'math' has no tool 'ad'; it has: add"
    await assert_usable(socket)


async def test_arguments_that_break_the_schema_are_answered_with_path_and_reason(
    rig: GatewayRig, socket: Socket
) -> None:
    """A bad call is refused before it is queued, and every violation is named."""
    session = await socket.open()

    error = await socket.refused(
        "tools/call", session=session, server="math", name="add", arguments={"a": "1", "parts": [{"of": 1}, {}], "c": 0}
    )

    assert (error["code"], error["data"]["type"]) == (-32602, "invalid_arguments")
    assert {(p["path"], p["message"]) for p in error["data"]["problems"]} == {
        ("$.a", "'1' is not of type 'integer'"),
        ("$.parts[1]", "'of' is a required property"),
        ("$", "'b' is a required property"),
        ("$", "Additional properties are not allowed ('c' was unexpected)"),
    }
    assert await rig.queued("math") == 0
    await assert_usable(socket)


async def test_arguments_that_no_message_can_hold_are_refused(socket: Socket) -> None:
    """JSON's integers have no bound; msgpack's have."""
    session = await socket.open()

    error = await socket.refused(
        "tools/call", session=session, server="math", name="add", arguments={"a": 2**70, "b": 1}
    )

    assert error["data"]["type"] == "invalid_arguments"
    await assert_usable(socket)


async def test_an_oversize_frame_is_answered_and_the_socket_lives_on(socket: Socket) -> None:
    """Above the limit a frame is refused, unread, with its size and the limit."""
    answer = await socket.ask("x" * (LIMIT + 1))

    assert answer["id"] is None
    assert answer["error"]["code"] == 413
    assert answer["error"]["data"] | {"message": ""} == {
        "type": "payload_too_large",
        "message": "",
        "retryable": False,
        "size": LIMIT + 1,
        "limit": LIMIT,
    }
    await assert_usable(socket)


async def test_the_size_of_a_frame_is_counted_in_bytes(socket: Socket) -> None:
    """Characters of several bytes count as such."""
    answer = await socket.ask("ä" * (LIMIT // 2 + 1))

    assert answer["error"]["data"]["size"] == LIMIT + 2


async def test_a_frame_above_four_times_the_limit_closes_the_socket(gateway: RunningGateway) -> None:
    """Such a frame is not even read to its end: close code 1009."""
    async with gateway.connect() as connection:
        await connection.send("x" * (4 * LIMIT + 1))

        with pytest.raises(ConnectionClosedError) as closed:
            await connection.recv()

    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009


@pytest.mark.parametrize("method", ["session/open", "session/close"])
async def test_an_unknown_session_and_another_tenants_get_the_same_answer(
    gateway: RunningGateway, socket: Socket, method: str
) -> None:
    """The answer does not tell whether a session exists."""
    async with gateway.socket(key="umbra-key") as other:
        theirs = await other.open()

        unknown = await socket.refused(method, session="0" * 24)
        foreign = await socket.refused(method, session=theirs)

        assert unknown["code"] == foreign["code"] == 404
        assert unknown["data"]["type"] == foreign["data"]["type"] == "unknown_session"
        assert foreign["message"].replace(theirs, "0" * 24) == unknown["message"]
        await other.call(method, session=theirs)
    await assert_usable(socket)


async def test_no_other_method_reaches_into_another_tenants_session(gateway: RunningGateway, socket: Socket) -> None:
    """Calling, looking and cancelling need the session's own tenant."""
    async with gateway.socket(key="umbra-key") as other:
        theirs = await other.open()
        job = await other.call("tools/call", session=theirs, server="math", name="add", arguments={"a": 1, "b": 2})

        refusals = [
            await socket.refused("tools/call", session=theirs, server="math", name="add", arguments={"a": 1, "b": 2}),
            await socket.refused("job/get", session=theirs, job=job["job"]),
            await socket.refused("job/cancel", session=theirs, job=job["job"]),
        ]

        assert {refusal["data"]["type"] for refusal in refusals} == {"unknown_session"}


@pytest.mark.parametrize("key", [None, "wrong", ""])
async def test_an_upgrade_without_a_known_key_is_denied(gateway: RunningGateway, key: str | None) -> None:
    """The upgrade itself is answered with 401 and a problem body."""
    with pytest.raises(InvalidStatus) as denied:
        async with gateway.connect(key):
            pass

    response = denied.value.response
    assert response.status_code == 401
    assert response.headers["content-type"] == "application/problem+json"
    assert json.loads(response.body)["type"] == "unauthenticated"


async def test_an_upgrade_that_offers_only_unknown_subprotocols_is_denied(gateway: RunningGateway) -> None:
    """A client that could not understand us is told so before it sends anything."""
    with pytest.raises(InvalidStatus) as denied:
        async with gateway.connect(subprotocols=["soap"]):
            pass

    assert denied.value.response.status_code == 400
    assert "mcp.json, mcp.msgpack" in json.loads(denied.value.response.body)["detail"]


async def test_the_first_known_subprotocol_that_is_offered_is_taken(gateway: RunningGateway) -> None:
    """Unknown ones before it do not matter."""
    async with gateway.connect(subprotocols=["soap", "mcp.msgpack", "mcp.json"]) as connection:
        assert connection.subprotocol == "mcp.msgpack"


async def test_compression_is_declined(gateway: RunningGateway) -> None:
    """It would cost 300 KB a connection, and unpack small frames to large ones before any limit is looked at."""
    async with gateway.connect(compression="deflate") as connection:
        assert connection.response is not None
        assert "sec-websocket-extensions" not in connection.response.headers


async def test_msgpack_frames_carry_the_same_methods(rig: GatewayRig, gateway: RunningGateway) -> None:
    """Under mcp.msgpack requests, answers and events are binary frames; text and what JSON cannot say are refused."""
    async with gateway.connect(subprotocols=["mcp.msgpack"]) as connection:

        async def ask(frame: str | bytes) -> dict[str, Any]:
            await connection.send(frame)
            return dict(msgpack.unpackb(await connection.recv()))

        def request(method: str, **params: Any) -> bytes:
            packed: bytes = msgpack.packb({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
            return packed

        text = await ask('{"jsonrpc": "2.0", "id": 1, "method": "servers/list"}')
        broken = await ask(b"\xc1")
        keys = await ask(msgpack.packb({1: 2}))
        binary = await ask(request("tools/call", session="s", server="math", name="add", arguments={"a": b"x"}))
        opened = await ask(request("session/open"))
        await rig.add_output(opened["result"]["session"], 1)
        event = msgpack.unpackb(await connection.recv())

    assert text["error"]["data"]["type"] == "invalid_request"
    assert [answer["error"]["data"]["type"] for answer in (broken, keys, binary)] == ["parse_error"] * 3
    assert event["params"]["type"] == "output"


async def test_requests_of_one_socket_are_answered_at_the_same_time(rig: GatewayRig, gateway: RunningGateway) -> None:
    """A slow answer (status/get waits 0.3 s for workers) does not hold up a quick one."""
    await rig.add_worker()
    async with gateway.connect() as connection:
        for number, method in enumerate(["status/get", "servers/list"]):
            await connection.send(json.dumps({"jsonrpc": "2.0", "id": number, "method": method}))
        first = json.loads(await connection.recv())
        second = json.loads(await connection.recv())

    assert (first["id"], second["id"]) == (1, 0)


async def test_a_socket_answers_everything_that_a_client_sends_at_once(
    rig: GatewayRig, gateway: RunningGateway
) -> None:
    """Beyond the bound of requests in flight the socket is not read, and nothing is lost."""
    async with gateway.connect() as connection, asyncio.timeout(20):
        session = json.loads(await _sent(connection, {"id": -1, "method": "session/open"}))["result"]["session"]
        for number in range(500):
            params = {"session": session, "job": "none"}
            await connection.send(json.dumps({"jsonrpc": "2.0", "id": number, "method": "job/get", "params": params}))
        answers = [json.loads(await connection.recv()) for _ in range(500)]

    assert {answer["id"] for answer in answers} == set(range(500))
    assert {answer["error"]["data"]["type"] for answer in answers} == {"unknown_job"}


async def _sent(connection: Any, request: dict[str, Any]) -> Any:
    await connection.send(json.dumps({"jsonrpc": "2.0", **request}))
    return await connection.recv()


async def test_a_socket_carries_a_bounded_number_of_sessions(rig: GatewayRig) -> None:
    """One more is refused; joining one that it carries is not, and closing one makes room."""
    gateway = await rig.start_gateway(max_sessions_per_connection=2)
    async with gateway.socket() as socket:
        first, _ = await socket.open(), await socket.open()

        error = await socket.refused("session/open")
        await socket.open(session=first)
        await socket.call("session/close", session=first)
        await socket.open()

    assert error["data"]["type"] == "invalid_request"
    assert error["data"]["limit"] == 2
