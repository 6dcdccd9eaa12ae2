"""What the trace of a turn has of its model and its calls."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from common import tracing
from common.schema import Job
from tests.collector import attributes, collector
from tests.model_server import Call, Calls, Say
from tests.unit.worker.chat.rig import ChatRig, text_result


async def add(job: Job) -> dict[str, Any]:
    return text_result("3")


async def test_requests_to_the_model_and_calls_are_steps_of_the_turn(
    rig: ChatRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is a child of the turn's attempt; what was said is not told."""
    with collector() as found:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
        exporting = tracing.exporting("worker")
        exporting.__enter__()
        try:
            await rig.offer("math")
            rig.tool_server("math", add)
            await rig.worker()
            rig.provider.will(Calls([Call("math__add", {"a": 1})]), Say("hushed"))
            end = await rig.end_of(await rig.send("whispered"))
            await rig.until_settled()
        finally:
            await asyncio.to_thread(exporting.__exit__, None, None, None)
        (turn,) = found.named("process jobs.chat")
        asked = [span for span in found.spans if span.name.startswith("chat ")]
        (called,) = found.named("send jobs.math")

        assert end["outcome"] == "succeeded"
        assert [span.parent_span_id for span in [*asked, called]] == [turn.span_id] * 3
        assert {attributes(span)["gen_ai.operation.name"] for span in asked} == {"chat"}
        assert {attributes(span)["gen_ai.provider.name"] for span in asked} == {"openai"}
        assert all(int(attributes(span)["gen_ai.usage.output_tokens"]) > 0 for span in asked)
        assert not any(word in body for body in found.bodies for word in (b"hushed", b"whispered"))
