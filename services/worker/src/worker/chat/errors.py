"""How a chat turn can end other than by an answer, beside what becomes of its model (worker.models.errors).

JobError                        (common.job_errors)
├── SessionClosed               failed: its session is not known any more
├── ConversationUnusable        failed: its messages can be neither read nor added to
└── UnusableCall                failed: what the model asked for is no call; it is told so, and goes on
"""

from __future__ import annotations

from common.errors import ServiceError
from common.job_errors import JobError


class SessionClosed(JobError):
    type = "session_closed"

    def __init__(self) -> None:
        super().__init__("the session was closed, and its conversation is gone: open another one")


class ConversationUnusable(JobError):
    """`cause` is the store's error."""

    type = "conversation_unusable"

    def __init__(self, cause: ServiceError) -> None:
        super().__init__(f"the turn cannot go on with its conversation: {cause.message}", cause=cause.as_dict())


class UnusableCall(JobError):
    """Ends no job: it stands in the place of a call's result."""

    type = "unusable_call"
