"""What a session says: events, how a job ended, and where in the stream a reader stands."""

from __future__ import annotations

import base64
import time
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from client.errors import ProtocolFault

EventType = Literal["queued", "started", "progress", "output", "step", "decision", "retrying", "cancelling", "result"]
Outcome = Literal["succeeded", "failed", "cancelled", "timed_out", "outcome_unknown", "dead_lettered"]


@dataclass(frozen=True, slots=True)
class Position:
    """The last event that a reader has. `epoch` names the store: numbers of another epoch mean nothing."""

    epoch: str
    seq: int

    def __str__(self) -> str:
        return f"{self.epoch}:{self.seq}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The inverse of `str()`, which is also the `id` of an event in the gateway's event stream over HTTP.

        Raises:
            ValueError: if `text` is not `<epoch>:<seq>`.
        """
        epoch, _, seq = text.rpartition(":")
        if not epoch or not seq.isdigit():
            raise ValueError(f"{text!r} is not <epoch>:<seq>")
        return cls(epoch, int(seq))


@dataclass(frozen=True, slots=True)
class Event:
    """One stored message of a job."""

    session: str
    job: str
    seq: int
    """Grows along a session, with gaps."""
    attempt: int
    """Which delivery of the job to a worker, from 1; 0 before the first."""
    type: EventType
    time_ms: int
    """Wall clock of the writer."""
    data: dict[str, Any]
    """By type, see docs/protocol.md, "Events"."""

    @property
    def terminal(self) -> bool:
        return self.type == "result"

    @property
    def output_bytes(self) -> bytes:
        """What an `output` event carries, in whichever form it came; empty where it only tells of bytes."""
        if self.type != "output":
            return b""
        if "text" in self.data:
            return str(self.data["text"]).encode()
        data = self.data.get("data", b"")
        return data if isinstance(data, bytes) else base64.b64decode(data)

    @classmethod
    def from_params(cls, params: dict[str, Any]) -> Self:
        """
        Raises:
            ProtocolFault: if a field is missing.
        """
        try:
            return cls(*(params[name] for name in cls.__slots__))
        except KeyError as exc:
            raise ProtocolFault(f"the gateway sent an event without {exc}") from exc


@dataclass(frozen=True, slots=True)
class JobResult:
    """How a job ended."""

    job: str
    outcome: Outcome
    result: dict[str, Any] | None = None
    """MCP's CallToolResult as the tool gave it."""
    error: dict[str, Any] | None = None
    """`{type, message, …}` where there is no answer of the tool."""
    timings: dict[str, float] = field(default_factory=dict)
    """`queue_ms`, `container_ms`, `tool_ms`."""
    ran: dict[str, Any] = field(default_factory=dict)
    """What it ran under: image, runtime, network, limits."""
    output: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What it wrote: `{<stream>: {size, sha256, artifact?: {uri, media_type, expires_ms}}}`."""
    attempt: int = 0
    seq: int = 0

    @property
    def succeeded(self) -> bool:
        return self.outcome == "succeeded"

    @property
    def text(self) -> str:
        """All text content of the answer, one block per line."""
        content = (self.result or {}).get("content") or []
        return "\n".join(str(block.get("text", "")) for block in content if block.get("type") == "text")

    @property
    def structured(self) -> dict[str, Any]:
        """The answer's `structuredContent`; empty where it has none."""
        content = (self.result or {}).get("structuredContent")
        return content if isinstance(content, dict) else {}

    @classmethod
    def from_event(cls, event: Event) -> Self:
        data = event.data
        return cls(
            job=event.job,
            outcome=data["outcome"],
            result=data.get("result"),
            error=data.get("error"),
            timings=data.get("timings") or {},
            ran=data.get("ran") or {},
            output=data.get("output") or {},
            attempt=event.attempt,
            seq=event.seq,
        )

    def as_event(self, session: str) -> Event:
        """The terminal event again, for a reader that it did not reach; its time is now."""
        facts = {name: getattr(self, name) for name in ("outcome", "result", "error", "timings", "ran", "output")}
        data = {name: value for name, value in facts.items() if value}
        return Event(session, self.job, self.seq, self.attempt, "result", time.time_ns() // 1_000_000, data)


@dataclass(frozen=True, slots=True)
class Job:
    """What is known of a job at one moment."""

    id: str
    state: EventType
    """Type of its newest event."""
    attempt: int
    seq: int
    """Number of its newest event."""
    server: str | None
    """None, like `tool`, once the store has dropped the job's first event."""
    tool: str | None
    result: JobResult | None
    """None while it goes on."""

    @classmethod
    def from_answer(cls, answer: dict[str, Any]) -> Self:
        """From the answer to `job/get`."""
        facts = {name: answer[name] for name in ("state", "attempt", "seq", "server", "tool")}
        result = None
        if answer["state"] == "result":
            result = JobResult(
                job=answer["job"],
                outcome=answer["outcome"],
                result=answer.get("result"),
                error=answer.get("error"),
                timings=answer.get("timings") or {},
                output=answer.get("output") or {},
                attempt=answer["attempt"],
                seq=answer["seq"],
            )
        return cls(id=answer["job"], result=result, **facts)
