"""What a client calls, over and over, and what must come back: each lane knows its own right answer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from client import Event, JobResult

FIXTURE = "mcp-orchestrator/fixture:local"
CATALOG = f"""
servers:
  shared: {{image: {FIXTURE}, pool: {{min: 1, max: 2}}}}
  kept: {{image: {FIXTURE}, scope: session, pool: {{min: 1, max: 12}}}}
  shell: {{kind: exec, image: mcp-orchestrator/exec:local, scope: session, pool: {{min: 1, max: 12}}}}
"""
STEPS = 8
LINES = 10


class Ask(NamedTuple):
    server: str
    tool: str
    arguments: dict[str, object]


class Lane(Protocol):
    """One of a client's, which has one call at a time in it."""

    name: str
    pause_s: float
    """Between two calls."""

    def ask(self) -> Ask:
        """The next call."""

    def fault(self, events: Sequence[Event]) -> str:
        """What is wrong with the answer to the newest one, which has succeeded; empty if nothing is."""


class Quick:
    """Its latency is what a client waits for."""

    name = "quick"
    pause_s = 0.1

    def __init__(self) -> None:
        self._count = 0

    def ask(self) -> Ask:
        self._count += 1
        return Ask("shared", "echo", {"text": f"call {self._count}"})

    def fault(self, events: Sequence[Event]) -> str:
        return _text_is(f"call {self._count}", events)


class Long:
    """Runs when the worker that has it is told to go."""

    name = "long"
    pause_s = 0.1

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def ask(self) -> Ask:
        return Ask("shared", "sleep", {"ms": self._rng.randrange(2000, 3000), "label": "awake"})

    def fault(self, events: Sequence[Event]) -> str:
        return _text_is("awake", events)


class Progress:
    """Each step is told once and in order."""

    name = "progress"
    pause_s = 0.3

    def ask(self) -> Ask:
        return Ask("shared", "progress", {"steps": STEPS, "delay_ms": 100})

    def fault(self, events: Sequence[Event]) -> str:
        told = [event.data["progress"] for event in _last_attempt(events) if event.type == "progress"]
        return "" if told == list(range(1, STEPS + 1)) else f"progress was told as {told}"


class Stream:
    """Output that comes while the command runs; may not be repeated."""

    name = "stream"
    pause_s = 0.3

    def ask(self) -> Ask:
        return Ask("shell", "run", {"command": f"for n in $(seq {LINES}); do echo $n; sleep 0.1; done"})

    def fault(self, events: Sequence[Event]) -> str:
        came = b"".join(event.output_bytes for event in _last_attempt(events)).decode()
        return "" if came == "".join(f"{n}\n" for n in range(1, LINES + 1)) else f"the output came as {came!r}"


class Kept:
    """A counter in the session's own container, which may not be repeated: a call that ran twice or was left out shows
    as a wrong number. It begins anew where a call says `state_lost`, and only there."""

    name = "kept"
    pause_s = 0.2

    def __init__(self) -> None:
        self._count = 0

    def ask(self) -> Ask:
        return Ask("kept", "count", {})

    def fault(self, events: Sequence[Event]) -> str:
        if any(event.type == "started" and event.data["state_lost"] for event in events):
            self._count = 0
        self._count += 1
        fault = _text_is(str(self._count), events)
        text = JobResult.from_event(events[-1]).text
        self._count = int(text) if text.isdigit() else self._count  # one wrong number is one fault
        return fault


def _last_attempt(events: Sequence[Event]) -> list[Event]:
    return [event for event in events if event.attempt == events[-1].attempt]


def _text_is(expected: str, events: Sequence[Event]) -> str:
    text = JobResult.from_event(events[-1]).text
    return "" if text == expected else f"answered {text!r}, not {expected!r}"
