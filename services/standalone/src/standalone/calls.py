"""The calls of the demo, and what each of them must have done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from client import Event, JobResult

BRANCH: Final = "demo-branch"
REPOSITORY: Final = "/tmp/repo"


@dataclass(frozen=True)
class Seen:
    """A call as it was seen from outside."""

    call: Call
    events: list[tuple[float, Event]]
    """Milliseconds since the call was sent, and the event."""

    @property
    def result(self) -> JobResult:
        return JobResult.from_event(self.events[-1][1])

    @property
    def total_ms(self) -> float:
        return self.events[-1][0]

    @property
    def container(self) -> str:
        return str(next((event.data.get("container") for _, event in self.events if event.type == "started"), ""))

    def times(self, type: str) -> list[float]:
        return [at_ms for at_ms, event in self.events if event.type == type]


Check = Callable[[Seen], str]
"""What is wrong with a call; empty if nothing is."""


@dataclass(frozen=True)
class Call:
    about: str
    server: str
    tool: str
    arguments: dict[str, Any]
    checks: Sequence[Check]


def says(*texts: str) -> Check:
    """The answer's text has all of these."""

    def check(seen: Seen) -> str:
        missing = [text for text in texts if text not in seen.result.text]
        return f"the answer lacks {', '.join(map(repr, missing))}: {seen.result.text[:200]!r}" if missing else ""

    return check


def shows(type: str, least: int, ahead_ms: float) -> Check:
    """At least so many events of a type, the first of them so long before the end: they came while it ran."""

    def check(seen: Seen) -> str:
        times = seen.times(type)
        if len(times) < least:
            return f"{len(times)} {type} events instead of {least}"
        if seen.total_ms - times[0] < ahead_ms:
            return f"the first {type} event came {seen.total_ms - times[0]:.0f} ms before the end: it did not stream"
        return ""

    return check


CALLS: Final = (
    Call(
        "a tool of an MCP server in a warm, shared container",
        "time",
        "get_current_time",
        {"timezone": "UTC"},
        [says('"timezone": "UTC"', '"datetime"')],
    ),
    Call(
        "the same container again",
        "time",
        "convert_time",
        {"source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo"},
        [says("T21:00:00+09:00", "+9.0h")],
    ),
    Call(
        "a server that keeps state: its container is leased to this session",
        "git",
        "git_log",
        {"repo_path": REPOSITORY, "max_count": 3},
        [says("Ignore byte code", "Print a table of numbers", "Show how to run the program")],
    ),
    Call(
        "a change in that container",
        "git",
        "git_create_branch",
        {"repo_path": REPOSITORY, "branch_name": BRANCH},
        [says(BRANCH)],
    ),
    Call(
        "which is still there with the next call",
        "git",
        "git_branch",
        {"repo_path": REPOSITORY, "branch_type": "local"},
        [says("main", "faster", BRANCH)],
    ),
    Call(
        "progress, as it happens",
        "everything",
        "trigger-long-running-operation",
        {"duration": 2, "steps": 4},
        [says("Long running operation completed", "Steps: 4"), shows("progress", 4, 1000)],
    ),
    Call(
        "a command whose output streams",
        "exec",
        "run",
        {"command": "for i in 1 2 3; do echo line $i; sleep 0.3; done"},
        [says("line 1", "line 2", "line 3"), shows("output", 3, 500)],
    ),
    Call(
        "Python in the same container",
        "exec",
        "python",
        {"code": "import sys\nprint(sum(range(101)))\nprint('no network needed', file=sys.stderr)"},
        [says("5050"), shows("output", 2, 0)],
    ),
)
