"""Events and answers in a few words for people."""

from __future__ import annotations

import json
from typing import Any, Final

from client.event import Event, JobResult

LINE_CHARS: Final = 100

ENDED: Final = {
    "succeeded": "succeeded",
    "failed": "failed",
    "cancelled": "was cancelled, and nothing of it runs any more",
    "timed_out": "ran out of time",
    "outcome_unknown": "has an unknown outcome",
    "dead_lettered": "was given up",
}
"""What became of a job, by its outcome."""


def summary(event: Event) -> str:
    """What an event says, in one line."""
    data = event.data
    match event.type:
        case "queued":
            said = f"{data.get('server')} {data.get('tool')}"
        case "started" if "model" in data:
            said = f"on {data.get('worker')} with {data['model'] or 'no model'}"
        case "started":
            warm = "warm" if data.get("warm") else "cold"
            lost = ", state lost" if data.get("state_lost") else ""
            said = f"on {data.get('worker')} in {warm} container {str(data.get('container'))[:12]}{lost}"
        case "progress" if event.attempt == 0:
            said = data.get("message") or "waiting"
        case "progress":
            total = f"/{data['total']:g}" if data.get("total") else ""
            said = f"{data.get('progress', 0):g}{total} {data.get('message') or ''}"
        case "output":
            said = f"{data.get('stream')}: {_output(event)}"
        case "step":
            calls = ", ".join(called(call) for call in data.get("calls") or [])
            said = f"answer {data.get('step')} asks for {calls}"
        case "decision":
            said = "the user lets it run" if data.get("approved") else "the user denies it"
        case "retrying":
            said = f"attempt {event.attempt} failed, the next one follows: {(data.get('error') or {}).get('message')}"
        case "cancelling":
            said = "its end was asked for"
        case "result":
            result = JobResult.from_event(event)
            why = (result.error or {}).get("message") or " ".join(blocks(result.result))
            said = f"{result.outcome}: {why}" if why else result.outcome
    return shorten(said)


def _output(event: Event) -> str:
    if "text" in event.data:
        return str(event.data["text"]).rstrip()
    size = event.data.get("size") or len(event.output_bytes)
    return f"[{size:,} bytes{', which the store has dropped' if event.data.get('lost') else ''}]"


def called(call: dict[str, Any]) -> str:
    """A call that a model asks for: tool and arguments, in one line."""
    if not call.get("server"):
        return str(call.get("name") or "a tool that there is not")
    arguments = json.dumps(call.get("arguments") or {}, ensure_ascii=False)
    return f"{call['server']}/{call['tool']} {arguments}"


def message_text(message: dict[str, Any]) -> str:
    """What a message of a conversation says."""
    content = message.get("content", "")
    if isinstance(content, str):
        return content
    return " ".join(_part(part) for part in content) if isinstance(content, list) else json.dumps(content)


def shorten(text: str, chars: int = LINE_CHARS) -> str:
    """One line of at most `chars` characters."""
    line = " ".join(text.split())
    return line if len(line) <= chars else line[: chars - 1] + "…"


def blocks(result: dict[str, Any] | None) -> list[str]:
    """Each content block of a tool's answer, as text."""
    return [_block(block) for block in (result or {}).get("content") or []]


def ending(result: JobResult) -> str:
    """Why a job did not succeed, as the end of a sentence."""
    said = ENDED[result.outcome]
    if result.error:
        return f"{said}: {result.error.get('message', result.error.get('type'))}"
    structured = (result.result or {}).get("structuredContent") or {}
    if result.outcome == "failed" and "exitCode" in structured:
        return f"{said} with exit code {structured['exitCode']}"
    return said


def _block(block: dict[str, Any]) -> str:
    match block:
        case {"type": "text", "text": str(text)}:
            return text
        case {"type": "resource_link", "uri": uri}:
            return f"[{block.get('name', 'resource')}: {uri}]"
        case {"type": "resource", "resource": {"text": str(text)}}:
            return text
        case {"type": "resource", "resource": {"uri": uri}}:
            return f"[resource: {uri}]"
        case {"type": str(kind), "data": str(data)}:
            # Base64 has four characters for three bytes.
            return f"[{kind}: {block.get('mimeType', 'unknown type')}, {len(data) * 3 // 4:,} bytes]"
        case _:
            return f"[{block.get('type', 'unknown content')}]"


def _part(part: Any) -> str:
    text = part.get("text") if isinstance(part, dict) else part
    if isinstance(text, str):
        return text
    if isinstance(text, dict) and "part" in text:
        return f"{text['part']['start']} … ({text['part']['size']} bytes)"
    return f"[{part.get('type', 'part')}]" if isinstance(part, dict) else str(part)
