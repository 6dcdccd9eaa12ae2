"""Turns: what is asked of the model, what is stored, what the client hears."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from common.chat_errors import TurnInProgress
from common.schema import Job
from tests.model_server import Break, Call, Calls, Fail, Hold, Say
from tests.unit.common.bus_rig import SESSION, counted, until
from tests.unit.worker.chat.rig import LIMITS, ChatRig, text_result, told_to_model
from worker.models.contract import Usage


async def add(job: Job) -> dict[str, Any]:
    return text_result(str(job.arguments["a"] + job.arguments["b"]))


async def test_an_answer_streams_and_is_kept_with_the_question(rig: ChatRig) -> None:
    """And the next turn's model is told both."""
    await rig.worker()
    rig.provider.will(Say("It is four."), Say("Five."))
    turn = await rig.send("What is 2 + 2?")
    events = await rig.events(turn.id)
    await rig.until_settled()
    second = await rig.end_of(await rig.send("And 2 + 3?"))

    text = "".join(event.data["text"] for event in events if event.type == "output")
    assert text == "It is four."
    result = events[-1].data["result"]
    assert result["content"] == [{"type": "text", "text": "It is four."}]
    assert result["structuredContent"]["ended"] == "whole"
    assert result["structuredContent"]["usage"]["output_tokens"] > 0
    assert [(message["role"], message["content"]) for message in await rig.messages()] == [
        ("user", "What is 2 + 2?"),
        ("assistant", "It is four."),
        ("user", "And 2 + 3?"),
        ("assistant", "Five."),
    ]
    assert second["outcome"] == "succeeded"
    assert told_to_model(rig.provider, "user") == [
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "user", "content": "And 2 + 3?"},
    ]
    assert told_to_model(rig.provider, "system")[0]["content"] == "Be brief."


async def test_calls_of_one_answer_run_at_once_as_jobs_of_the_session(rig: ChatRig) -> None:
    """The model gets each result behind its call, whichever came first."""
    await rig.offer("math", "more")
    second_is_here = asyncio.Event()

    async def slow(job: Job) -> dict[str, Any]:
        await second_is_here.wait()
        return text_result("slow")

    async def quick(job: Job) -> dict[str, Any]:
        second_is_here.set()
        return text_result("quick")

    rig.tool_server("math", slow)
    rig.tool_server("more", quick)
    await rig.worker()
    rig.provider.will(Calls([Call("math__add", {"a": 1}), Call("more__add", {"a": 2})]), Say("Done."))
    turn = await rig.send("go")
    events = await rig.events(turn.id)

    [step] = [event for event in events if event.type == "step"]
    assert [(call["server"], call["tool"], call["arguments"]) for call in step.data["calls"]] == [
        ("math", "add", {"a": 1}),
        ("more", "add", {"a": 2}),
    ]
    assert [tool["function"]["name"] for tool in rig.provider.requests[0].body["tools"]] == ["math__add", "more__add"]
    told = told_to_model(rig.provider, "tool")
    assert [message["content"] for message in told] == ["slow", "quick"]
    assert [message["tool_call_id"] for message in told] == [call["job"] for call in step.data["calls"]]
    assert events[-1].data["result"]["content"][0]["text"] == "Done."


async def test_a_turn_is_the_same_with_another_provider(rig: ChatRig) -> None:
    """Its calls and their results in that provider's words."""
    rig.tool_server("math", add)
    await rig.worker(provider="anthropic")
    rig.provider.will(Calls([Call("math__add", {"a": 1, "b": 2})], text="I add."), Say("Three."))
    turn = await rig.send("What is 1 + 2?")
    end = await rig.end_of(turn)

    assert end["result"]["content"][0]["text"] == "Three."
    question, asked, answered = rig.provider.requests[-1].body["messages"]
    assert question["role"] == "user"
    assert [block["type"] for block in asked["content"]] == ["text", "tool_use"]
    assert answered["content"][0]["tool_use_id"] == asked["content"][1]["id"]
    assert "3" in str(answered["content"][0]["content"])


async def test_the_tokens_of_a_turn_are_counted_over_all_its_answers(rig: ChatRig) -> None:
    """In its result, in its messages and as a metric."""
    before = counted("chat_tokens_total", model="openai:test", direction="input")
    rig.tool_server("math", add)
    await rig.worker()
    rig.provider.will(
        Calls([Call("math__add", {"a": 1, "b": 2})], usage=Usage(100, 10)), Say("Three.", usage=Usage(200, 20))
    )
    end = await rig.end_of(await rig.send("go"))

    assert end["result"]["structuredContent"]["usage"] == {"input_tokens": 300, "output_tokens": 30}
    answers = [message for message in await rig.messages() if message["role"] == "assistant"]
    assert [answer["usage"]["input_tokens"] for answer in answers] == [100, 200]
    assert counted("chat_tokens_total", model="openai:test", direction="input") == before + 300


async def test_a_turn_that_takes_too_long_ends_and_so_do_its_calls(rig: ChatRig) -> None:
    """Its time is that of all its answers and calls."""

    async def run(job: Job) -> dict[str, Any]:
        await until(lambda: rig.bus.cancel_requested(job.session, job.id))
        return {"outcome": "cancelled"}

    tools = rig.tool_server("math", run)
    await rig.worker()
    rig.provider.will(Calls([Call("math__add", {})]))
    end = await rig.end_of(await rig.send("go", timeout_ms=500))

    assert (end["outcome"], end["error"]["type"]) == ("timed_out", "job_timeout")
    assert (await rig.events(tools.jobs[0].id))[-1].data["outcome"] == "cancelled"


async def test_a_turn_whose_worker_is_lost_goes_on_from_its_last_stored_step(rig: ChatRig) -> None:
    """A call that has ended is not made again, and one that runs is only waited for."""
    goes_on = asyncio.Event()

    async def answer(job: Job) -> dict[str, Any]:
        if job.arguments["n"] == 2:
            await goes_on.wait()
        return text_result(f"result {job.arguments['n']}")

    tools = rig.tool_server("math", answer)
    first = await rig.worker()
    rig.provider.will(Calls([Call("math__add", {"n": 1}), Call("math__add", {"n": 2})]), Say("Done."))
    turn = await rig.send("go")
    jobs = await tools.until_jobs(2)
    await rig.events(jobs[0].id)
    await first.lose()
    await rig.worker()
    goes_on.set()
    events = await rig.events(turn.id)

    assert events[-1].data["result"]["content"][0]["text"] == "Done."
    assert len(tools.jobs) == 2
    assert len(rig.provider.requests) == 2
    assert [message["content"] for message in told_to_model(rig.provider, "tool")] == ["result 1", "result 2"]
    assert [message["role"] for message in await rig.messages()] == ["user", "assistant", "tool", "tool", "assistant"]


async def test_a_turn_whose_worker_is_lost_while_the_model_answers_asks_again(rig: ChatRig) -> None:
    """Nothing of half an answer is kept."""
    held = Hold(Say("Half of it and the rest."), after=2)
    rig.provider.will(held, Say("The whole."))
    first = await rig.worker()
    turn = await rig.send("go")
    await held.reached.wait()
    await first.lose()
    await rig.worker()
    events = await rig.events(turn.id)

    assert events[-1].data["result"]["content"][0]["text"] == "The whole."
    assert [message["content"] for message in await rig.messages()] == ["go", "The whole."]
    [again] = [event for event in events if event.type == "started" and event.attempt == 2]
    assert again.data["discard"] is True


async def test_an_outcome_that_nobody_knows_is_told_to_the_model_as_such(rig: ChatRig) -> None:
    """It decides what to do about it."""

    async def lost(job: Job) -> dict[str, Any]:
        return {"outcome": "outcome_unknown", "error": {"type": "outcome_unknown", "message": "its worker was lost"}}

    rig.tool_server("math", lost)
    await rig.worker()
    rig.provider.will(Calls([Call("math__add", {})]), Say("I do not know."))
    await rig.end_of(await rig.send("go"))

    [told] = told_to_model(rig.provider, "tool")
    assert "outcome of this call is unknown" in told["content"]
    assert "its worker was lost" in told["content"]


async def test_what_the_model_makes_up_becomes_no_job_and_is_told_to_it(rig: ChatRig) -> None:
    """A tool that there is not, and arguments that are none."""
    tools = rig.tool_server("math", add)
    await rig.worker()
    rig.provider.will(Calls([Call("math__divide", {}), Call("math__add", "{no json")]), Say("Sorry."))
    end = await rig.end_of(await rig.send("go"))

    unknown, broken = told_to_model(rig.provider, "tool")
    assert "there is no tool 'math__divide'" in unknown["content"]
    assert "no JSON object" in broken["content"]
    assert end["outcome"] == "succeeded"
    assert tools.jobs == []


async def test_a_cancel_ends_the_turn_and_its_calls(rig: ChatRig) -> None:
    """What was said until then is in the conversation."""

    async def run(job: Job) -> dict[str, Any]:
        await until(lambda: rig.bus.cancel_requested(job.session, job.id))
        return {"outcome": "cancelled"}

    tools = rig.tool_server("math", run)
    await rig.worker()
    rig.provider.will(Calls([Call("math__add", {})], text="I shall add."))
    turn = await rig.send("go")
    [call] = await tools.until_jobs(1)
    await rig.events(call.id, lambda event: event.type == "started")
    await rig.bus.request_cancel(SESSION, turn.id, 1)
    end = await rig.end_of(turn)

    assert end["outcome"] == "cancelled"
    assert (await rig.events(call.id))[-1].data["outcome"] == "cancelled"
    said, result = (await rig.messages())[1:]
    assert said["content"] == "I shall add."
    assert (result["role"], result["outcome"]) == ("tool", "cancelled")


async def test_a_cancel_while_the_model_answers_keeps_what_it_had_said(rig: ChatRig) -> None:
    """And the provider is asked no further."""
    held = Hold(Say("One two three four five."), after=3)
    rig.provider.will(held)
    await rig.worker()
    turn = await rig.send("go")
    await held.reached.wait()
    await rig.events(turn.id, lambda event: event.type == "output")
    await rig.bus.request_cancel(SESSION, turn.id, 1)
    end = await rig.end_of(turn)
    async with asyncio.timeout(10):
        await held.left.wait()

    assert end["outcome"] == "cancelled"
    [_, said] = await rig.messages()
    assert said["ended"] == "cut"
    assert said["content"]
    assert "One two three four five.".startswith(said["content"])


@pytest.mark.parametrize(("budget", "ended"), [({"steps": 2}, "max_steps"), ({"tokens": 1}, "max_tokens")])
async def test_a_turn_stops_at_its_budget_and_says_so(rig: ChatRig, budget: dict[str, Any], ended: str) -> None:
    """The calls of its last answer are made, so that nothing is left open."""
    rig.tool_server("math", add)
    await rig.worker(replace(LIMITS, **budget))
    rig.provider.will(*[Calls([Call("math__add", {"a": n, "b": 1})]) for n in range(3)])
    end = await rig.end_of(await rig.send("go"))

    assert end["outcome"] == "failed"
    assert end["result"]["structuredContent"]["ended"] == ended
    assert f"CHAT_{ended.upper()}" in end["result"]["content"][0]["text"]
    assert (await rig.messages())[-1]["role"] == "tool"


async def test_a_result_that_is_too_long_for_the_model_is_cut_with_a_note_where_the_whole_is(rig: ChatRig) -> None:
    """The conversation has it whole."""

    async def long(job: Job) -> dict[str, Any]:
        return text_result("x" * 5_000)

    tools = rig.tool_server("math", long)
    await rig.worker()
    rig.provider.will(Calls([Call("math__add", {})]), Say("Long."))
    await rig.end_of(await rig.send("go"))

    [told] = told_to_model(rig.provider, "tool")
    assert told["content"].startswith(
        "x" * 2_000 + "\n[cut: this is the beginning of 5000 characters; the whole is at "
    )
    assert told["content"].endswith(f"/v1/sessions/{SESSION}/jobs/{tools.jobs[0].id}]")
    assert (await rig.messages())[2]["content"][0]["text"] == "x" * 5_000


async def test_a_session_offers_the_model_only_what_it_allows(rig: ChatRig) -> None:
    """By server, or by tool."""
    await rig.offer("math", "more", tools=("add", "divide"))
    await rig.open_session(allow=["more", "math/add"])
    tools = rig.tool_server("math", add)
    await rig.worker()
    rig.provider.will(Calls([Call("math__divide", {})]), Say("Sorry."))
    await rig.end_of(await rig.send("go"))

    names = [tool["function"]["name"] for tool in rig.provider.requests[0].body["tools"]]
    assert names == ["math__add", "more__add", "more__divide"]
    assert tools.jobs == []


@pytest.mark.parametrize("approved", [True, False])
async def test_a_call_of_a_tool_that_asks_waits_for_the_user(rig: ChatRig, approved: bool) -> None:
    """Also where its worker is lost while it waits."""
    await rig.offer("math", entry="{image: none, tools: {add: {approval: ask}}}")
    tools = rig.tool_server("math", add)
    first = await rig.worker()
    rig.provider.will(Calls([Call("math__add", {"a": 1, "b": 2})]), Say("Done."))
    turn = await rig.send("go")
    asked = (await rig.events(turn.id, lambda event: event.type == "step"))[-1].data["calls"][0]
    await first.lose()
    await rig.worker()
    await rig.events(turn.id, lambda event: event.type == "step" and event.attempt == 2)
    before = len(tools.jobs)
    await rig.decide(asked["job"], approved=approved)
    end = await rig.end_of(turn)

    assert asked["ask"] is True
    assert before == 0
    assert end["outcome"] == "succeeded"
    [told] = told_to_model(rig.provider, "tool")
    assert told["content"] == ("3" if approved else "the user denied this call")
    assert len(tools.jobs) == int(approved)


async def test_without_a_model_a_turn_ends_with_an_error_that_says_what_to_set(rig: ChatRig) -> None:
    """At once."""
    await rig.worker(provider=None)
    end = await rig.end_of(await rig.send("go"))

    assert (end["outcome"], end["error"]["type"]) == ("failed", "no_model")
    assert "CHAT_MODEL" in end["error"]["message"]


async def test_a_session_has_one_turn_at_a_time(rig: ChatRig) -> None:
    """The refusal names the one there is, and leaves nothing of its own."""
    held = Hold(Say("First."))
    rig.provider.will(held, Say("Second."))
    await rig.worker()
    turn = await rig.send("go")
    await held.reached.wait()
    with pytest.raises(TurnInProgress) as refused:
        await rig.send("and")
    held.let_go.set()
    await rig.end_of(turn)
    await rig.until_settled()
    second = await rig.end_of(await rig.send("again"))

    assert refused.value.data["job"] == turn.id
    assert second["outcome"] == "succeeded"
    accepted = {s.event.job async for s in rig.bus.replay_session(SESSION, 0) if s.event.type == "queued"}
    assert len(accepted) == 2


async def test_an_answer_that_breaks_off_is_asked_for_again(rig: ChatRig) -> None:
    """In another attempt, whose text replaces the one before."""
    rig.provider.will(Break(2, Say("It broke in its middle.")), Say("Whole."))
    await rig.worker()
    turn = await rig.send("go")
    events = await rig.events(turn.id)

    assert [event.data["error"]["type"] for event in events if event.type == "retrying"] == ["model_interrupted"]
    assert events[-1].data["result"]["content"][0]["text"] == "Whole."
    assert [message["content"] for message in await rig.messages()] == ["go", "Whole."]


async def test_a_provider_that_refuses_ends_the_turn_without_telling_the_key(rig: ChatRig) -> None:
    """Neither in the event nor in the conversation."""
    rig.provider.will(Fail(401, "Incorrect API key provided: sk-secret"))
    await rig.worker()
    end = await rig.end_of(await rig.send("go"))

    assert (end["outcome"], end["error"]["type"]) == ("failed", "model_refused")
    assert "sk-secret" not in str(end)
    assert "sk-secret" not in str(await rig.messages())


async def test_what_others_add_to_the_conversation_meanwhile_stays_and_does_no_harm(rig: ChatRig) -> None:
    """A recorded call, say, between the model's answer and its calls' results."""

    async def answer(job: Job) -> dict[str, Any]:
        message = {"role": "tool", "job": "other", "server": "math", "tool": "add", "outcome": "succeeded"}
        await rig.conversations.append(SESSION, [{**message, "content": "by hand"}], ttl_s=600)
        return text_result("mine")

    rig.tool_server("math", answer)
    await rig.worker()
    rig.provider.will(Calls([Call("math__add", {})]), Say("Done."))
    await rig.end_of(await rig.send("go"))

    assert [message["role"] for message in await rig.messages()] == ["user", "assistant", "tool", "tool", "assistant"]
    assert [message["content"] for message in told_to_model(rig.provider, "tool")] == ["mine"]
    assert "by hand" in told_to_model(rig.provider, "user")[-1]["content"]
