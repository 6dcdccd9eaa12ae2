"""What is refused of an import of conversations.

CallerError                     (common.errors)
├── SessionTaken                the session is another tenant's
└── ConversationDiffers         it has other messages than those that are imported
"""

from __future__ import annotations

from common.errors import CallerError


class SessionTaken(CallerError):
    type = "session_taken"
    code = 409
    status = 409

    def __init__(self, session: str, tenant: str) -> None:
        super().__init__(
            f"session {session} belongs to another tenant than {tenant}: nothing was imported into it", session=session
        )


class ConversationDiffers(CallerError):
    """Nothing of the request was added."""

    type = "conversation_differs"
    code = 409
    status = 409

    def __init__(self, session: str, number: int, last: int) -> None:
        super().__init__(
            f"the conversation of {session} already has {last} messages that are not from this import:"
            f" number {number} is another one; nothing was added or overwritten",
            number=number,
            last=last,
        )
