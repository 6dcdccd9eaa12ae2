"""One turn: the model is asked, its calls are run, it is asked again with their results, until it answers.

Every answer is stored before its calls are made, and every result before the model is asked again, so a turn that is
delivered again goes on where the last one was lost (docs/adr/0018).
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from time import perf_counter
from typing import Any, Final

from common import metrics, tracing
from common.bus import Bus
from common.conversations.message import Message
from common.conversations.repository import Conversations
from common.errors import StoreUnavailable
from common.job_errors import JobError
from common.log import get
from common.schema import Job
from worker.chat.calls import Calls, call_id, not_called
from worker.chat.errors import UnusableCall
from worker.chat.history import told
from worker.chat.limits import ChatLimits
from worker.chat.story import Story, patiently, session_record
from worker.chat.toolbox import ChatTool, Toolbox, read_toolbox
from worker.models.contract import ChatModel, Reply, ToolCall, Usage
from worker.outbox import Outbox

_log = get(__name__)

TEXT: Final = "text"
"""The output stream of what the model says."""
WOUND_UP_WITHIN_S: Final = 20.0


class TakenOver(Exception):
    """The turn is another worker's."""


class Turn:
    """One attempt of it."""

    def __init__(
        self,
        bus: Bus,
        conversations: Conversations,
        model: ChatModel,
        limits: ChatLimits,
        job: Job,
        outbox: Outbox,
        traceparent: str | None,
    ) -> None:
        self._bus = bus
        self._model = model
        self._limits = limits
        self._job = job
        self._outbox = outbox
        self._story = Story(bus, conversations, job, limits.result_chars)
        self._calls = Calls(bus, job, traceparent)
        self._tools = Toolbox(())
        self._said: list[str] = []
        """What the model has said of an answer that is not whole yet."""

    async def run(self) -> dict[str, Any]:
        """The turn's result, in the shape of MCP's CallToolResult; `structuredContent` is
        `{ended, steps, usage: {input_tokens, output_tokens}, model}`.

        Raises:
            JobError: if it ends otherwise.
            TakenOver: if the store does not take its events any more.
        """
        async with self._calls.following():
            record = await session_record(self._bus, self._job.session)
            self._tools = await patiently("reading the tools", lambda: read_toolbox(self._bus, record))
            await self._story.load()
            if not self._story.asked:
                await self._story.add({"role": "user", "content": self._job.arguments["content"]})
            return await self._converse()

    async def _converse(self) -> dict[str, Any]:
        while True:
            answers = self._story.answers
            if answers and not answers[-1]["calls"]:
                return self._result(answers)
            if answers:
                await self._run_calls(answers[-1])
                if over := self._over(answers):
                    return self._result(answers, over)
            await self._answer(len(answers) + 1)

    def _over(self, answers: list[Message]) -> str:
        """Which budget is used up, if one is."""
        if len(answers) >= self._limits.steps:
            return "max_steps"
        return "max_tokens" if _usage(answers).total >= self._limits.tokens else ""

    # --- the model ------------------------------------------------------------------------------------

    async def _answer(self, step: int) -> None:
        """Ask the model, and store what it says."""
        messages = told(
            self._story.messages, result_chars=self._limits.result_chars, history_chars=self._limits.history_chars
        )
        self._said.clear()
        begun = perf_counter()
        provider, _, name = self._model.name.partition(":")
        asked = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": provider, "gen_ai.request.model": name}
        with tracing.span(f"chat {name}", "client", None, asked) as asking:
            reply = await self._model.reply(
                self._limits.system_prompt,
                messages,
                self._tools.offers,
                max_tokens=self._limits.reply_tokens,
                tell=self._tell,
            )
            asking.set(
                {
                    "gen_ai.usage.input_tokens": reply.usage.input_tokens,
                    "gen_ai.usage.output_tokens": reply.usage.output_tokens,
                }
            )
        metrics.CHAT_MODEL_SECONDS.labels(self._model.name).observe(perf_counter() - begun)
        metrics.CHAT_TOKENS.labels(self._model.name, "input").inc(reply.usage.input_tokens)
        metrics.CHAT_TOKENS.labels(self._model.name, "output").inc(reply.usage.output_tokens)
        await self._story.add(self._message(step, reply))
        self._said.clear()

    async def _tell(self, text: str) -> None:
        self._said.append(text)
        await self._outbox.output(TEXT, text.encode("utf-8", "replace"))

    def _message(self, step: int, reply: Reply) -> Message:
        return {
            "role": "assistant",
            "step": step,
            "content": reply.text,
            "calls": [self._planned(step, index, call) for index, call in enumerate(reply.calls)],
            "ended": reply.ended,
            "model": self._model.name,
            "usage": {"input_tokens": reply.usage.input_tokens, "output_tokens": reply.usage.output_tokens},
        }

    def _planned(self, step: int, index: int, call: ToolCall) -> dict[str, Any]:
        planned: dict[str, Any] = {
            "job": call_id(self._job.id, step, index),
            "name": call.name,
            "arguments": call.arguments,
        }
        if call.arguments is None:
            planned["written"] = call.written
        if tool := self._tools.find(call.name):
            planned |= {"server": tool.server, "tool": tool.tool}
        return planned

    # --- its calls ------------------------------------------------------------------------------------

    async def _run_calls(self, answer: Message) -> None:
        """Run those of its calls that have no result yet, all at once, and store each result as it comes."""
        open_calls = [call for call in answer["calls"] if self._story.result_of(call["job"]) is None]
        if not open_calls:
            return
        shown = [self._shown(call) for call in answer["calls"]]
        if not await self._outbox.step({"step": answer["step"], "calls": shown, "usage": answer["usage"]}):
            raise TakenOver
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(self._run_call(call)) for call in open_calls]
            for ended in asyncio.as_completed(running):
                await self._story.add(await ended)

    def _shown(self, call: dict[str, Any]) -> dict[str, Any]:
        """A call as the `step` event tells it."""
        tool = self._tools.find(call["name"])
        shown = {name: call.get(name) for name in ("job", "server", "tool", "arguments")}
        return {**shown, "ask": True} if tool is not None and tool.asks else shown

    async def _run_call(self, call: dict[str, Any]) -> Message:
        tool: ChatTool | None = self._tools.find(call["name"])
        if tool is None:
            why = UnusableCall(f"there is no tool {call['name']!r}; call only the tools that are offered")
        elif call["arguments"] is None:
            why = UnusableCall(f"the arguments are no JSON object: {json.dumps(call.get('written', ''))[:500]}")
        else:
            return await self._calls.run(call["job"], tool, call["arguments"], self._job.arguments["call_timeout_ms"])
        return not_called(call["job"], tool, why)

    # --- the end --------------------------------------------------------------------------------------

    def _result(self, answers: list[Message], over: str = "") -> dict[str, Any]:
        newest = answers[-1]
        text = newest["content"]
        if over:
            setting = {"max_steps": "CHAT_MAX_STEPS", "max_tokens": "CHAT_MAX_TOKENS"}[over]
            text = f"{text}\n\nThe turn was stopped before an answer: it has used up {setting}.".lstrip()
        return {
            "content": [{"type": "text", "text": text}],
            "structuredContent": {
                "ended": over or newest["ended"],
                "steps": len(answers),
                "usage": _as_dict(_usage(answers)),
                "model": self._model.name,
            },
            "isError": bool(over),
        }

    async def wind_up(self) -> None:
        """After a cancel or a timeout: end its calls, and keep what was said and done until then.

        What cannot be kept in time is lost: the turn has to end.
        """
        with suppress(TimeoutError, JobError, StoreUnavailable):
            async with asyncio.timeout(WOUND_UP_WITHIN_S):
                answers = self._story.answers
                calls = answers[-1]["calls"] if answers else []
                open_calls = [call for call in calls if self._story.result_of(call["job"]) is None]
                async with self._calls.following():
                    await self._calls.end(call["job"] for call in open_calls)
                    await self._keep_results(open_calls)
                if said := "".join(self._said):
                    reply = Reply(said, (), Usage(), "whole")
                    await self._story.add(self._message(len(answers) + 1, reply) | {"ended": "cut"})

    async def _keep_results(self, calls: list[dict[str, Any]]) -> None:
        for call in calls:
            tool = self._tools.find(call["name"])
            if tool is not None and (result := await self._calls.ended(call["job"], tool, call["arguments"])):
                await self._story.add(result)


def _usage(answers: list[Message]) -> Usage:
    """Of the whole turn, its earlier attempts included."""
    return sum((Usage(**answer["usage"]) for answer in answers), Usage())


def _as_dict(usage: Usage) -> dict[str, int]:
    return {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
