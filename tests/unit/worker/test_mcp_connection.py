"""JSON-RPC over a server's stdio, against doubles that do what servers do."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.job_errors import JobError
from tests.unit.common.bus_rig import DEADLINE_S
from tests.unit.worker.duplexes import (
    SERVER_INFO,
    AnotherModernVersion,
    AnswersWith,
    DoesNotRead,
    EndsAtOnce,
    IgnoresTheProbe,
    LegacyServer,
    MemoryDuplex,
    ModernServer,
    RefusesEverything,
    StopsReading,
    connected,
)
from worker.engine import STDERR
from worker.errors import HandshakeFailed, OutputTooLarge, ServerGone, ToolProtocolError
from worker.large_answer import LargeAnswer
from worker.mcp_connection import LEGACY_VERSION, MODERN_VERSION, STDERR_LINES, Answer, McpConnection
from worker.output_stream import OutputLimits

NEVER_S = 3600.0
TEXT = "zwölf 東京 \U0001f5fc"

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


async def answered(waiting: asyncio.Future[Answer]) -> dict[str, Any]:
    async with asyncio.timeout(DEADLINE_S):
        result = await waiting
    assert isinstance(result, dict)
    return result


async def failure(waiting: asyncio.Future[Answer]) -> JobError:
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.wait({waiting})
    exc = waiting.exception()
    assert isinstance(exc, JobError)
    return exc


# --- frames and lines -----------------------------------------------------------------------------------------


def transcript() -> bytes:
    """What a server writes in the course of two calls, of which the second is answered first."""
    messages: list[dict[str, Any]] = [
        {"method": "notifications/progress", "params": {"progressToken": 1, "progress": 1, "message": TEXT}},
        {"id": 2, "result": {"text": TEXT}},
        {"id": 1, "result": {"text": "a\\nb"}},
    ]
    lines = [json.dumps({"jsonrpc": "2.0", **message}, ensure_ascii=False).encode() for message in messages]
    return b"\n".join(lines) + b"\r\n"


async def outcome_of(pieces: list[bytes]) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    duplex = MemoryDuplex()
    told: list[dict[str, Any]] = []
    async with connected(duplex) as connection:
        _, first = await connection.send("tools/call", {}, told.append)
        _, second = await connection.send("tools/call", {})
        for piece in pieces:
            duplex.say(piece)
        return told, await answered(first), await answered(second)


WHOLE = ([{"progress": 1, "message": TEXT}], {"text": "a\\nb"}, {"text": TEXT})


async def test_messages_are_the_same_wherever_the_output_is_cut_in_two() -> None:
    """At every byte, also within a character."""
    data = transcript()
    for cut in range(len(data) + 1):
        assert await outcome_of([data[:cut], data[cut:]]) == WHOLE


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.integers(0, len(transcript())), max_size=12))
def test_messages_are_the_same_however_often_the_output_is_cut(cuts: list[int]) -> None:
    """Into pieces of any size, empty ones among them."""
    data = transcript()
    places = [0, *sorted(cuts), len(data)]
    pieces = [data[start:end] for start, end in itertools.pairwise(places)]

    assert asyncio.run(outcome_of(pieces)) == WHOLE


async def test_messages_are_the_same_byte_by_byte() -> None:
    """The smallest pieces that there are."""
    assert await outcome_of([bytes([byte]) for byte in transcript()]) == WHOLE


@pytest.mark.parametrize(
    "line",
    [
        b"", b"   ", b"Listening on stdio", b"{broken", b"[1, 2]", b"null", b'"text"', b"\xff\xfe",
        b'{"id": 1, "result": {}}', b'{"jsonrpc": "1.0", "id": 1, "result": {}}',
        b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000,
    ],
    ids=[
        "empty", "blank", "banner", "broken", "batch", "null", "text", "no UTF-8", "no version", "version 1",
        "deep list", "deep object", "long number",
    ],
)  # fmt: skip
async def test_a_line_that_is_no_message_does_not_disturb_the_answer(line: bytes) -> None:
    """Servers print to stdout by mistake."""
    duplex = MemoryDuplex()
    async with connected(duplex) as connection:
        _, waiting = await connection.send("tools/call", {})
        duplex.say(line + b"\n")
        duplex.answer(id=1, result={"text": "fine"})

        assert await answered(waiting) == {"text": "fine"}


@pytest.mark.parametrize(
    "request_id",
    [None, "1", 1.0, 1.5, True, [1], {"id": 1}, 99, -1, 0],
    ids=repr,
)
async def test_an_answer_to_no_request_of_ours_is_ignored(request_id: Any) -> None:
    """Ids of ours are numbers, counted from 1; an id that cannot be a key is no harm."""
    duplex = MemoryDuplex()
    async with connected(duplex) as connection:
        _, waiting = await connection.send("tools/call", {})
        duplex.answer(id=request_id, result={"text": "foreign"})
        duplex.answer(id=1, result={"text": "ours"})

        assert await answered(waiting) == {"text": "ours"}


async def test_a_second_answer_to_the_same_request_is_ignored() -> None:
    """The first one counts."""
    duplex = MemoryDuplex()
    async with connected(duplex) as connection:
        _, first = await connection.send("tools/call", {})
        _, second = await connection.send("tools/call", {})
        duplex.answer(id=1, result={"n": 1})
        duplex.answer(id=1, result={"n": 2})
        duplex.answer(id=2, result={"n": 3})

        assert [await answered(first), await answered(second)] == [{"n": 1}, {"n": 3}]


async def test_an_answer_to_a_call_that_was_given_up_is_ignored() -> None:
    """Nobody waits for it any more."""
    duplex = MemoryDuplex()
    async with connected(duplex) as connection:
        _, given_up = await connection.send("tools/call", {})
        given_up.cancel()
        _, waiting = await connection.send("tools/call", {})
        duplex.answer(id=1, result={})
        duplex.answer(id=2, result={"n": 2})

        assert await answered(waiting) == {"n": 2}


async def test_an_error_answer_fails_its_call_with_the_servers_words() -> None:
    """And no other call."""
    duplex = MemoryDuplex()
    async with connected(duplex) as connection:
        _, failing = await connection.send("tools/call", {})
        _, waiting = await connection.send("tools/call", {})
        duplex.answer(id=1, error={"code": -32000, "message": "no", "data": 7})
        exc = await failure(failing)
        duplex.answer(id=2, result={})

        assert isinstance(exc, ToolProtocolError)
        assert (exc.message, exc.data) == ("no", {"code": -32000, "data": 7})
        assert await answered(waiting) == {}


@pytest.mark.parametrize("answer", [{}, {"result": 5}, {"result": None}, {"error": "no"}, {"error": None}], ids=repr)
async def test_an_answer_that_says_nothing_fails_its_call(answer: dict[str, Any]) -> None:
    """It must not be waited for until the timeout."""
    duplex = MemoryDuplex()
    async with connected(duplex) as connection:
        _, waiting = await connection.send("tools/call", {})
        duplex.answer(id=1, **answer)

        assert isinstance(await failure(waiting), ToolProtocolError)


# --- the server's own messages ------------------------------------------------------------------------------------


async def test_a_ping_of_the_server_is_answered() -> None:
    """With its own id, whatever type that is."""
    duplex = MemoryDuplex()
    async with connected(duplex):
        for request_id in (7, "seven"):
            duplex.answer(id=request_id, method="ping")

        assert await duplex.until_sent(2) == [
            {"jsonrpc": "2.0", "id": 7, "result": {}},
            {"jsonrpc": "2.0", "id": "seven", "result": {}},
        ]


@pytest.mark.parametrize("method", ["sampling/createMessage", "roots/list", "elicitation/create", ["odd"], None])
async def test_any_other_request_of_the_server_is_refused(method: Any) -> None:
    """It cannot be put to one of the sessions that the container serves."""
    duplex = MemoryDuplex()
    async with connected(duplex):
        duplex.answer(id=7, method=method, params=[])
        [reply] = await duplex.until_sent(1)

    assert (reply["id"], reply["error"]["code"]) == (7, -32601)


async def test_a_notification_of_the_server_is_not_answered() -> None:
    """Logs and list changes are for nobody here."""
    duplex = MemoryDuplex()
    async with connected(duplex):
        duplex.answer(method="notifications/message", params={"level": "info", "data": "hello"})
        duplex.answer(method="notifications/tools/list_changed")
        duplex.answer(id=7, method="ping")

        assert [message.get("id") for message in await duplex.until_sent(1)] == [7]


async def test_a_server_that_asks_and_does_not_read_ends_its_own_connection_only() -> None:
    """Its calls fail; the reading ends in an orderly way, because the worker goes on with other servers."""
    duplex = StopsReading()
    async with connected(duplex) as connection:
        _, waiting = await connection.send("tools/call", {})
        duplex.answer(id=7, method="ping")

        assert "did not read its input" in (await failure(waiting)).message
        assert connection.ended


async def test_progress_goes_to_the_call_that_it_is_of() -> None:
    """By its token; what MCP does not define is left out; after the answer nothing more comes."""
    duplex = MemoryDuplex()
    told: dict[str, list[dict[str, Any]]] = {"a": [], "b": []}
    async with connected(duplex) as connection:
        _, a = await connection.send("tools/call", {"_meta": {"note": 1}}, told["a"].append)
        _, b = await connection.send("tools/call", {}, told["b"].append)
        _, silent = await connection.send("tools/call", {})
        for params in (
            {"progressToken": 2, "progress": 1, "total": 2, "message": "half", "extra": 1},
            {"progressToken": 1, "progress": 0.5},
            {"progressToken": 3, "progress": 1},
            {"progressToken": "1", "progress": 9},
            {"progressToken": [1], "progress": 9},
            {"progressToken": {}, "progress": 9},
            {"progressToken": True, "progress": 9},
            {"progress": 9},
            [1],
            None,
        ):
            duplex.answer(method="notifications/progress", params=params)
        duplex.answer(id=1, result={})
        await answered(a)
        duplex.answer(method="notifications/progress", params={"progressToken": 1, "progress": 2})
        duplex.answer(id=2, result={})
        duplex.answer(id=3, result={})
        await answered(b)
        await answered(silent)

    assert told == {"a": [{"progress": 0.5}], "b": [{"progress": 1, "total": 2, "message": "half"}]}
    assert [message["params"].get("_meta") for message in duplex.sent] == [
        {"note": 1, "progressToken": 1},
        {"progressToken": 2},
        None,
    ]


# --- the end ----------------------------------------------------------------------------------------------------


async def test_the_servers_end_fails_every_call_that_waits_and_every_later_one() -> None:
    """With what it last wrote to stderr."""
    duplex = MemoryDuplex()
    async with connected(duplex) as connection:
        waiting = [(await connection.send("tools/call", {}))[1] for _ in range(3)]
        done = waiting[0]
        duplex.answer(id=1, result={})
        await answered(done)
        duplex.say(b"panic: out of ideas\n", STDERR)
        duplex.end()
        failures = [await failure(each) for each in waiting[1:]]
        assert connection.ended
        with pytest.raises(ServerGone) as refused:
            await connection.send("tools/call", {})

    assert [type(exc) for exc in failures] == [ServerGone] * 2
    assert {exc.data["stderr"] for exc in [*failures, refused.value]} == {"panic: out of ideas"}
    assert len(duplex.sent) == 3


async def test_a_line_that_is_too_long_and_no_answer_is_skipped() -> None:
    """Neither its server nor the call beside it suffers from it, and nothing of it is held."""
    duplex = MemoryDuplex()
    async with connected(duplex) as connection:
        connection.limits = OutputLimits(collect=1000)
        _, waiting = await connection.send("tools/call", {})
        for _ in range(100):
            duplex.say(b"x" * 600)
        duplex.say(b"\n" + b'{"jsonrpc": "2.0", "method": "notifications/message", "params": "' + b"y" * 2000 + b'"}\n')
        duplex.answer(id=1, result={})

        assert await answered(waiting) == {}
        assert not connection.ended
        assert "too long" in connection.describe_failure("")


async def test_many_lines_in_one_piece_are_each_within_the_limit() -> None:
    """The limit is one line's."""
    duplex = MemoryDuplex()
    async with connected(duplex) as connection:
        connection.limits = OutputLimits(collect=1000)
        _, waiting = await connection.send("tools/call", {})
        duplex.say(b"rubbish\n" * 1000)
        duplex.answer(id=1, result={})

        assert await answered(waiting) == {}


@pytest.mark.parametrize("order", [("jsonrpc", "id", "result"), ("result", "jsonrpc", "id")], ids=["first", "last"])
async def test_an_answer_too_large_to_be_held_comes_as_a_stream(order: tuple[str, ...]) -> None:
    """Wherever its id stands; the call beside it is answered as ever."""
    duplex = MemoryDuplex()
    async with connected(duplex) as connection:
        connection.limits = OutputLimits(collect=1000)
        _, large = await connection.send("tools/call", {})
        _, small = await connection.send("tools/call", {})
        result = {"content": [{"type": "text", "text": 'line "one"\n' * 30_000}], "isError": True}
        message = {"jsonrpc": "2.0", "id": 1, "result": result}
        line = json.dumps({name: message[name] for name in order}).encode() + b"\n"
        for at in range(0, len(line), 32_768):
            duplex.say(line[at : at + 32_768])
        duplex.answer(id=2, result={})
        async with asyncio.timeout(DEADLINE_S):
            answer = await large
        assert isinstance(answer, LargeAnswer)
        whole = b"".join([chunk async for chunk in answer.chunks()])

        assert await answered(small) == {}
        assert (json.loads(whole), answer.is_error, answer.size) == (result, True, len(whole))
        answer.close()


async def test_an_answer_larger_than_may_be_kept_fails_its_call_only() -> None:
    """It is read to its end, where its id may stand."""
    duplex = MemoryDuplex()
    async with connected(duplex) as connection:
        connection.limits = OutputLimits(collect=1000, most=5000)
        _, large = await connection.send("tools/call", {})
        duplex.say(json.dumps({"result": {"content": "x" * 10_000}, "jsonrpc": "2.0", "id": 1}).encode() + b"\n")
        exc = await failure(large)
        _, small = await connection.send("tools/call", {})
        duplex.answer(id=2, result={})

        assert await answered(small) == {}
    assert isinstance(exc, OutputTooLarge)


async def test_a_large_error_is_told_by_its_beginning() -> None:
    """Nobody needs more of it."""
    duplex = MemoryDuplex()
    async with connected(duplex) as connection:
        connection.limits = OutputLimits(collect=1000)
        _, waiting = await connection.send("tools/call", {})
        duplex.say(json.dumps({"jsonrpc": "2.0", "id": 1, "error": {"message": "m" * 50_000}}).encode() + b"\n")
        exc = await failure(waiting)

    assert isinstance(exc, ToolProtocolError)
    assert "mmm" in exc.message
    assert len(exc.message) < 5_000


async def test_of_stderr_the_last_lines_are_kept_each_cut_to_a_length() -> None:
    """Enough to see the cause, and bounded; what is no UTF-8 is no harm."""
    duplex = MemoryDuplex()
    async with connected(duplex) as connection:
        for number in range(STDERR_LINES + 10):
            duplex.say(f"line {number}\n".encode(), STDERR)
        duplex.say(b"\xff" * 10_000 + b"\n", STDERR)
        _, waiting = await connection.send("tools/call", {})
        duplex.answer(id=1, result={})
        await answered(waiting)
        lines = connection.stderr.splitlines()

    assert len(lines) == STDERR_LINES
    assert lines[0] == "line 11"
    assert lines[-1] == "\ufffd" * 500


async def test_a_request_that_cannot_be_written_fails_at_once() -> None:
    """Nothing of it ran, and nothing waits for its answer."""
    async with connected(DoesNotRead()) as connection:
        with pytest.raises(ServerGone):
            await connection.request("tools/call", {})


async def test_a_cancel_names_the_request_and_is_not_waited_for() -> None:
    """MCP's notification."""
    duplex = MemoryDuplex()
    async with connected(duplex) as connection:
        request_id, _ = await connection.send("tools/call", {})
        await connection.cancel(request_id, "timed out")

    assert duplex.sent[1] == {
        "jsonrpc": "2.0",
        "method": "notifications/cancelled",
        "params": {"requestId": request_id, "reason": "timed out"},
    }


# --- the handshake ------------------------------------------------------------------------------------------------


async def handshake(duplex: MemoryDuplex, era: Any = None, probe_timeout_s: float = NEVER_S) -> McpConnection:
    async with connected(duplex) as connection, asyncio.timeout(DEADLINE_S):
        await connection.handshake(era, probe_timeout_s)
    return connection


async def test_a_modern_server_is_known_by_its_description() -> None:
    """It is not initialized; the question states our version, and so does every later request."""
    duplex = ModernServer()
    async with connected(duplex) as connection:
        await connection.handshake(None, NEVER_S)
        await connection.ping()

    assert (connection.era, connection.server_info) == ("modern", SERVER_INFO)
    assert duplex.methods == ["server/discover", "server/discover"]
    for message in duplex.sent:
        meta = message["params"]["_meta"]
        assert meta["io.modelcontextprotocol/protocolVersion"] == MODERN_VERSION
        assert meta["io.modelcontextprotocol/clientInfo"]["name"] == "mcp-orchestrator"


async def test_a_server_of_the_older_era_is_initialized() -> None:
    """In three steps; its requests carry no envelope of the newer era."""
    duplex = LegacyServer()
    connection = await handshake(duplex)

    assert (connection.era, connection.server_info) == ("legacy", SERVER_INFO)
    assert duplex.methods == ["server/discover", "initialize", "notifications/initialized"]
    assert duplex.sent[1]["params"]["protocolVersion"] == LEGACY_VERSION
    assert "_meta" not in duplex.sent[1]["params"]


async def test_a_server_that_ignores_the_probe_is_initialized_after_a_while() -> None:
    """Some say nothing to a method that they do not know."""
    duplex = IgnoresTheProbe()
    connection = await handshake(duplex, probe_timeout_s=0.05)

    assert connection.era == "legacy"
    assert duplex.methods == ["server/discover", "initialize", "notifications/initialized"]


async def test_a_modern_server_of_another_version_is_still_a_modern_one() -> None:
    """It says so by the code of its refusal, and is asked again."""
    duplex = AnotherModernVersion()
    connection = await handshake(duplex)

    assert (connection.era, connection.server_info) == ("modern", SERVER_INFO)


@pytest.mark.parametrize(
    ("duplex", "era", "methods"),
    [
        (LegacyServer, "legacy", ["initialize", "notifications/initialized"]),
        (ModernServer, "modern", ["server/discover"]),
    ],
)
async def test_a_known_era_is_not_asked_for_again(duplex: type[MemoryDuplex], era: Any, methods: list[str]) -> None:
    """It cannot change under one image: a container more starts without the probe."""
    server = duplex()
    connection = await handshake(server, era)

    assert (connection.era, connection.server_info) == (era, SERVER_INFO)
    assert server.methods == methods


async def test_a_handshake_with_a_server_that_ends_says_what_it_printed() -> None:
    """On stdout as on stderr: that names the cause."""
    async with connected(EndsAtOnce()) as connection:
        with pytest.raises(HandshakeFailed) as failed:
            await connection.handshake(None, NEVER_S)

    assert failed.value.message == (
        "the MCP handshake failed: the server ended; on stdout it printed: Welcome to the server!;"
        " on stderr: Traceback: no module named x"
    )


async def test_a_handshake_that_is_refused_says_why() -> None:
    """In the server's words."""
    async with connected(RefusesEverything()) as connection:
        with pytest.raises(HandshakeFailed, match="the MCP handshake failed: not today"):
            await connection.handshake(None, NEVER_S)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    st.dictionaries(st.sampled_from(["serverInfo", "_meta", "tools", "nextCursor", "x"]), VALUES, max_size=4)
    | st.fixed_dictionaries({"tools": st.lists(st.dictionaries(st.sampled_from(["name", "x"]), VALUES, max_size=2))})
    | VALUES,
    st.sampled_from([None, "legacy", "modern"]),
)
def test_whatever_a_server_answers_the_handshake_and_the_listing_end_well_or_with_our_error(
    result: Any, era: Any
) -> None:
    """It is somebody else's program: no answer of it may end the worker."""

    async def talk() -> None:
        async with connected(AnswersWith(result)) as connection, asyncio.timeout(DEADLINE_S):
            try:
                await connection.handshake(era, NEVER_S)
                tools = await connection.list_tools()
            except HandshakeFailed:
                return
        assert isinstance(connection.server_info, dict)
        assert all(isinstance(tool["name"], str) for tool in tools)

    asyncio.run(talk())


# --- listing --------------------------------------------------------------------------------------------------------


class Pages(MemoryDuplex):
    """Lists its tools in pages."""

    def __init__(self, pages: list[dict[str, Any]]) -> None:
        super().__init__()
        self._pages = pages

    def on_message(self, message: dict[str, Any]) -> None:
        self.answer(id=message["id"], result=self._pages[len(self.sent) - 1])


async def test_every_page_of_a_listing_is_read() -> None:
    """Until there is no cursor: an empty one is a cursor."""
    duplex = Pages(
        [
            {"tools": [{"name": "a"}], "nextCursor": "2"},
            {"tools": [], "nextCursor": ""},
            {"tools": [{"name": "b", "x": 1}, {"name": "c"}], "nextCursor": None},
        ]
    )
    async with connected(duplex) as connection:
        tools = await connection.list_tools()

    assert tools == [{"name": "a"}, {"name": "b", "x": 1}, {"name": "c"}]
    assert [message["params"] for message in duplex.sent] == [{}, {"cursor": "2"}, {"cursor": ""}]


async def test_a_listing_without_an_end_is_given_up() -> None:
    """A server may repeat its cursor for ever."""
    async with connected(AnswersWith({"tools": [{"name": "a"}], "nextCursor": "again"})) as connection:
        with pytest.raises(HandshakeFailed, match="did not end after 100 pages"):
            await connection.list_tools()


async def test_what_is_no_tool_is_left_out_of_the_listing() -> None:
    """A tool has a name, which is text."""
    listed: list[Any] = [{"name": "a"}, {}, None, "b", {"name": None}, {"name": ["c"]}, {"name": {}}, {"title": "d"}]
    async with connected(AnswersWith({"tools": listed})) as connection:
        assert await connection.list_tools() == [{"name": "a"}]


@pytest.mark.parametrize("answer", [{}, {"tools": None}, {"tools": 5}, {"tools": {"a": 1}}, {"tools": "abc"}], ids=str)
async def test_a_listing_without_a_list_is_a_failure(answer: dict[str, Any]) -> None:
    """It is not taken for a server that offers nothing."""
    async with connected(AnswersWith(answer)) as connection:
        with pytest.raises(HandshakeFailed, match="tools/list failed: the answer has no list of tools"):
            await connection.list_tools()


async def test_a_refused_listing_says_why() -> None:
    """In the server's words."""
    async with connected(RefusesEverything()) as connection:
        with pytest.raises(HandshakeFailed, match="tools/list failed: not today"):
            await connection.list_tools()
