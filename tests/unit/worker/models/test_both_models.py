"""What holds for the models of both providers, over the real SDKs and a provider of the tests' own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.model_server import Break, Call, Calls, Events, Fail, Hold, ModelServer, Say
from tests.model_wire import Provider
from tests.unit.worker.models.turn import KEY, Turn, open_turn
from worker.models.contract import ToolCall, Usage, UserMessage
from worker.models.errors import ModelInterrupted, ModelRefused, ModelUnavailable
from worker.models.written import MAX_CHARACTERS

TEXT = 'Grüße, 世界 🙂!\nA line\r\nand\u2028others\x85 \\u00e9 "quoted"'
CUTS = (1, 2, 3, 4, 5, 6, 7, 64)


@pytest.fixture(params=["openai", "anthropic"])
def provider(request: pytest.FixtureRequest) -> Provider:
    found: Provider = request.param
    return found


@pytest.fixture
async def turn(server: ModelServer, provider: Provider) -> AsyncIterator[Turn]:
    async with open_turn(server, provider) as opened:
        yield opened


async def test_text_is_told_in_order_and_stands_in_the_reply(server: ModelServer, turn: Turn) -> None:
    """Piece by piece as it comes, and no other text than the reply's."""
    server.will(Say(TEXT, piece=3))

    reply = await turn.ask()

    assert reply.text == "".join(turn.told) == TEXT
    assert len(turn.told) == len(TEXT) / 3
    assert (reply.calls, reply.ended) == ((), "whole")


@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("cut", CUTS)
async def test_a_stream_may_be_cut_anywhere(server: ModelServer, turn: Turn, cut: int, newline: str) -> None:
    """Inside a character, inside JSON, between CR and LF."""
    calls = [Call("add", {"a": 1, "b": "é🙂"}), Call("list", {}), Call("add", {"deep": [{"a": None}]})]
    server.will(Say(TEXT, calls, cut=cut, newline=newline, piece=4))

    reply = await turn.ask()

    assert reply.text == "".join(turn.told) == TEXT
    assert [(call.name, call.arguments) for call in reply.calls] == [(call.name, call.arguments) for call in calls]
    assert len({call.id for call in reply.calls}) == 3


async def test_text_comes_before_the_answer_is_whole(server: ModelServer, turn: Turn) -> None:
    """The first pieces are told while the provider still writes."""
    held = Hold(Say("abcdefghij", piece=2), after=5)
    server.will(held)
    first = asyncio.Event()

    async def tell(text: str) -> None:
        turn.told.append(text)
        first.set()

    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(
            turn.model.reply("", [UserMessage("Hello")], [], max_tokens=9, tell=tell), name="the question"
        )
        await first.wait()
        assert not asking.done()
        held.let_go.set()

    assert asking.result().text == "abcdefghij"


@pytest.mark.parametrize("written", ["no JSON", "[1]", '{"a": ', '"text"', '{"a": NaN}', '{"a": 1e999}'])
async def test_arguments_that_are_no_object_are_told_as_they_were_written(
    server: ModelServer, turn: Turn, written: str
) -> None:
    """So that the model can be told what was wrong."""
    server.will(Calls([Call("add", written)]))

    (call,) = (await turn.ask()).calls

    assert (call.name, call.arguments, call.written) == ("add", None, written)


async def test_no_arguments_at_all_are_an_empty_object(server: ModelServer, turn: Turn) -> None:
    """Models write nothing for a tool that takes nothing."""
    server.will(Calls([Call("list", "")]))

    (call,) = (await turn.ask()).calls

    assert call.arguments == {}


async def test_the_provider_tells_what_was_used(server: ModelServer, turn: Turn) -> None:
    server.will(Say("x", usage=Usage(321, 45)))

    assert (await turn.ask()).usage == Usage(321, 45)


@pytest.mark.parametrize("ended", ["length", "refused"])
async def test_an_answer_that_was_ended_says_so(server: ModelServer, turn: Turn, ended: str) -> None:
    """Its text so far is kept."""
    server.will(Say("I was about to", ended="length" if ended == "length" else "refused"))

    reply = await turn.ask()

    assert (reply.text, reply.ended) == ("I was about to", ended)


@pytest.mark.parametrize("calls", [False, True], ids=["text", "arguments"])
async def test_an_answer_without_end_is_cut(server: ModelServer, turn: Turn, calls: bool) -> None:
    """There are servers that do not heed the limit of tokens; what they wrote until then is a reply."""
    long = "x" * (2 * MAX_CHARACTERS)
    say = Say("", [Call("add", long)], piece=MAX_CHARACTERS // 4) if calls else Say(long, piece=MAX_CHARACTERS // 4)
    held = Hold(say, after=9)
    server.will(held)

    reply = await turn.ask()
    async with asyncio.timeout(10):
        await held.left.wait()

    assert reply.ended == "length"
    written = reply.calls[0].written if calls else reply.text
    assert MAX_CHARACTERS <= len(written) < len(long)


async def test_a_provider_that_is_busy_is_asked_again(server: ModelServer, turn: Turn) -> None:
    """By its SDK, after the time that the provider names."""
    server.will(Fail(429, retry_after=0.01), Fail(500, retry_after=0.01), Say("at last"))

    assert (await turn.ask()).text == "at last"
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [429, 500, 503, 529])
async def test_a_provider_that_stays_busy_is_unavailable(server: ModelServer, turn: Turn, status: int) -> None:
    """After the SDK's tries; the turn may be tried again later."""
    server.will(*[Fail(status, "too many", retry_after=0.01)] * 3)

    with pytest.raises(ModelUnavailable, match=f"HTTP {status}: too many") as refusal:
        await turn.ask()

    assert refusal.value.data["status"] == status
    assert refusal.value.retryable
    assert (len(server.requests), turn.told) == (3, [])


@pytest.mark.parametrize("wait", ["31", "86400", "inf", "nan", "Fri, 01 Jan 2100 00:00:00 GMT"])
async def test_a_provider_that_wants_a_long_wait_is_unavailable_at_once(
    server: ModelServer, turn: Turn, wait: str
) -> None:
    """A job does not sleep for what a header says: who asked is told, and asks again."""
    server.will(Fail(429, "come back tomorrow", retry_after=wait))

    with pytest.raises(ModelUnavailable, match="come back tomorrow"):
        await turn.ask()

    assert len(server.requests) == 1


async def test_a_wrong_key_is_refused_without_telling_it(server: ModelServer, turn: Turn) -> None:
    """Nor the beginning and end of it, which providers quote."""
    server.will(Fail(401, f"Incorrect API key provided: {KEY[:8]}****{KEY[-4:]} ({KEY})"))

    with pytest.raises(ModelRefused, match="does not accept the key") as refusal:
        await turn.ask()

    assert not refusal.value.retryable
    assert KEY[:8] not in str(refusal.value.as_dict())
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [400, 403, 404, 413, 422])
async def test_a_request_that_is_not_taken_says_why_in_short(server: ModelServer, turn: Turn, status: int) -> None:
    """In the provider's words, without the key, and no more than a few hundred characters of them."""
    server.will(Fail(status, f"no such model for {KEY}\n" + "x" * 5000))

    with pytest.raises(ModelRefused, match=f"HTTP {status}: no such model for … xxx") as refusal:
        await turn.ask()

    assert len(refusal.value.message) < 400
    assert len(server.requests) == 1


async def test_a_page_of_a_proxy_is_not_quoted(server: ModelServer, provider: Provider) -> None:
    """HTML says nothing that the status does not."""
    server.will(Fail(502, body="<html><body>Bad gateway</body></html>"))

    async with open_turn(server, provider, retries=0) as turn:
        with pytest.raises(ModelUnavailable, match=r"HTTP 502$"):
            await turn.ask()


@pytest.mark.parametrize("status", [400, 503])
async def test_an_error_that_breaks_off_is_one_of_the_connection(
    server: ModelServer, provider: Provider, status: int
) -> None:
    """What the provider had to say is not known."""
    server.will(Fail(status, breaks=True))

    async with open_turn(server, provider, retries=0) as turn:
        with pytest.raises(ModelUnavailable):
            await turn.ask()


async def test_what_no_json_can_say_is_refused(server: ModelServer, turn: Turn) -> None:
    """Nothing is sent."""
    with pytest.raises(ModelRefused):
        await turn.ask(UserMessage("half a pair: \ud83d"))

    assert server.requests == []


async def test_a_request_beyond_the_script_is_told(server: ModelServer, provider: Provider) -> None:
    """Of the tests' own server: who wrote too short a script reads it in the failure."""
    async with open_turn(server, provider, retries=0) as turn:
        with pytest.raises(ModelUnavailable, match="script has no answer to request 1"):
            await turn.ask()


@pytest.mark.parametrize("clean", [False, True], ids=["cut", "ended"])
@pytest.mark.parametrize("after", [1, 3, 5])
async def test_an_answer_that_breaks_off_is_interrupted(
    server: ModelServer, turn: Turn, after: int, clean: bool
) -> None:
    """Whether the connection was cut or ended in good order: half an answer is none."""
    server.will(Break(after, Say("abcdefghijklmnop", piece=2), clean=clean))

    with pytest.raises(ModelInterrupted) as refusal:
        await turn.ask()

    assert refusal.value.retryable
    assert "abcdefghijklmnop".startswith("".join(turn.told))
    assert len(server.requests) == 1


async def test_a_stream_of_something_else_is_interrupted(server: ModelServer, turn: Turn) -> None:
    server.will(Events(["{this is no JSON"]), Events([]))

    for _ in range(2):
        with pytest.raises(ModelInterrupted):
            await turn.ask()


async def test_a_provider_that_falls_silent_is_given_up(server: ModelServer, provider: Provider) -> None:
    """Before its answer it is unavailable, in its middle the answer is interrupted."""
    before, amid = Hold(Say("x")), Hold(Say("abcdef", piece=2), after=3)
    server.will(before, amid)

    async with open_turn(server, provider, retries=0, timeout_s=0.3) as turn:
        with pytest.raises(ModelUnavailable, match="no answer in time"):
            await turn.ask()
        with pytest.raises(ModelInterrupted):
            await turn.ask()
    assert before.left.is_set()
    async with asyncio.timeout(5):
        await amid.left.wait()


async def test_a_provider_that_is_not_there_is_unavailable(server: ModelServer, provider: Provider) -> None:
    """The refused connection is told, not only that there was none."""
    async with open_turn(server, provider, base_url="http://127.0.0.1:1/v1", retries=0) as turn:
        with pytest.raises(ModelUnavailable, match=r"(?i)connect"):
            await turn.ask()


@pytest.mark.parametrize("after", [0, 4])
async def test_who_is_cancelled_closes_the_connection(server: ModelServer, turn: Turn, after: int) -> None:
    """Before the answer and in its middle: a provider bills for what it writes to nobody."""
    held = Hold(Say("abcdefghij", piece=2), after=after)
    server.will(held, Say("the next"))

    async with asyncio.timeout(10):
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(turn.ask())
            await held.reached.wait()
            asking.cancel()
        await held.left.wait()

    assert asking.cancelled()
    assert (await turn.ask()).text == "the next"


async def test_what_the_taker_raises_is_not_taken_for_the_providers(server: ModelServer, turn: Turn) -> None:
    """And it closes the connection too."""
    held = Hold(Say("abcdefghij", piece=2), after=4)
    server.will(held)

    async def refuse(_text: str) -> None:
        raise ValueError("the store is full")

    with pytest.raises(ValueError, match="the store is full"):
        await turn.model.reply("", [UserMessage("Hello")], [], max_tokens=9, tell=refuse)
    async with asyncio.timeout(10):
        await held.left.wait()


async def test_many_turns_share_a_model(server: ModelServer, turn: Turn) -> None:
    """Each has the answer to its own question."""
    server.will(*[lambda asked: Say(asked.body["messages"][-1]["content"] * 20, piece=1)] * 20)

    replies = await asyncio.gather(*(turn.ask(UserMessage(f"<{number}>")) for number in range(20)))

    assert [reply.text for reply in replies] == [f"<{number}>" * 20 for number in range(20)]


async def test_a_base_url_may_have_a_path(server: ModelServer, provider: Provider) -> None:
    """As behind a proxy of many providers."""
    server.will(Say("x"), Say("y"))

    for path in ("/proxy/team", "/proxy/team/"):
        async with open_turn(server, provider, base_url=server.url + path) as turn:
            await turn.ask()

    end = {"openai": "/chat/completions", "anthropic": "/v1/messages"}[provider]
    assert [asked.path for asked in server.requests] == [f"/proxy/team{end}"] * 2


async def test_the_connection_is_used_again(server: ModelServer, turn: Turn) -> None:
    """To open one takes several times the way to the provider."""
    server.will(Say("x"), Say("y", [Call("add", {})]), Say("z"))

    for _ in range(3):
        await turn.ask()

    assert len({asked.peer for asked in server.requests}) == 1


async def test_the_key_and_the_model_are_sent(server: ModelServer, turn: Turn, provider: Provider) -> None:
    server.will(Say("x"))

    await turn.ask()

    (asked,) = server.requests
    assert turn.model.name == f"{provider}:m-1"
    assert (asked.provider, asked.body["model"], asked.body["stream"]) == (provider, "m-1", True)
    assert KEY in (asked.headers.get("x-api-key") or asked.headers["authorization"])


async def test_a_server_without_keys_is_sent_nobody_elses(
    server: ModelServer, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDKs would look into the environment, which may hold the key of another provider."""
    monkeypatch.setenv(f"{provider.upper()}_API_KEY", KEY)
    server.will(Say("x"), Fail(404, "there is none of that name"))

    async with open_turn(server, provider, api_key="") as turn:
        await turn.ask()
        with pytest.raises(ModelRefused, match="there is none of that name"):
            await turn.ask()

    assert KEY not in str(server.requests)


async def test_half_a_character_does_not_pass(server: ModelServer, turn: Turn) -> None:
    """JSON can say half a surrogate pair; no message of ours can."""
    server.will(Say("a\ud83dz", [Call("add", '{"a": "\\ud83d"}')], piece=9))

    reply = await turn.ask()

    assert reply.text == "".join(turn.told) == "a\ufffdz"
    assert reply.calls[0] == ToolCall(reply.calls[0].id, "add", None, '{"a": "\\ud83d"}')
