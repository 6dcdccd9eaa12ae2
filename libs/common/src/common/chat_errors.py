"""What is refused of a chat turn, and of calls in a session that allows only some.

CallerError                     (common.errors)
├── ToolNotAllowed              the session was opened with a list that it is not on
├── TurnInProgress              the session has one at a time
├── UnknownCall                 no turn asks leave for it
└── AlreadyDecided              and the other way
"""

from __future__ import annotations

from common.errors import CallerError


class ToolNotAllowed(CallerError):
    type = "tool_not_allowed"
    code = 403
    status = 403

    def __init__(self, server: str, tool: str | None, allow: list[str]) -> None:
        what = f"{server}/{tool}" if tool else server
        super().__init__(
            f"{what} is not among what this session may call: {', '.join(allow) or 'nothing'}", server=server, tool=tool
        )


class TurnInProgress(CallerError):
    type = "turn_in_progress"
    code = 409
    status = 409

    def __init__(self, turn: str) -> None:
        super().__init__(
            "a turn of this session waits or runs: follow it to its result, or cancel it (job/cancel)", job=turn
        )


class UnknownCall(CallerError):
    type = "unknown_call"
    code = 404
    status = 404

    def __init__(self, call: str) -> None:
        super().__init__(f"no turn that runs in this session asks leave for call {call[:100]!r}", job=call)


class AlreadyDecided(CallerError):
    type = "already_decided"
    code = 409
    status = 409

    def __init__(self, call: str, approved: bool) -> None:
        said = "approved" if approved else "denied"
        super().__init__(f"call {call} was {said} before: that stands", job=call, approved=approved)
