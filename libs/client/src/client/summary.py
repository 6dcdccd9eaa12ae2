"""Events and answers in a few words for people."""

from __future__ import annotations

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
