"""Errors as problem+json."""

from __future__ import annotations

import json

import pytest

from common.errors import (
    InvalidParams,
    QueueFull,
    RateLimited,
    ServerNotReady,
    ServiceError,
    StoreUnavailable,
    TooManyJobs,
    Unauthenticated,
    UnknownSession,
)
from gateway.problem import InternalError, problem


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (UnknownSession("s"), 404, None),
        (InvalidParams("invalid params", [{"path": "$.a", "message": "no"}]), 400, None),
        (Unauthenticated("no key"), 401, None),
        (QueueFull("math", 3, 1.2), 429, "2"),
        (RateLimited(10, 20, 20, 0.1), 429, "1"),
        (TooManyJobs(256, 257, 1.0), 429, "1"),
        (StoreUnavailable("away"), 503, "1"),
        (ServerNotReady("math", "no image"), 503, "1"),
        (InternalError(), 500, None),
    ],
)
def test_a_problem_has_the_status_and_the_facts_of_its_error(
    error: ServiceError, status: int, retry_after: str | None
) -> None:
    """Retry-After comes, in whole seconds, where repeating helps."""
    answer = problem(error)

    body = json.loads(bytes(answer.body))
    assert (answer.status_code, answer.media_type) == (status, "application/problem+json")
    assert answer.headers.get("retry-after") == retry_after
    assert body == {
        "type": error.type,
        "title": error.type.replace("_", " "),
        "status": status,
        "detail": error.message,
        "retryable": error.retryable,
        **error.data,
    }


def test_an_internal_error_tells_nothing_of_the_inside() -> None:
    """The log has the rest."""
    body = json.loads(bytes(problem(InternalError()).body))

    assert body["type"] == "internal_error"
    assert "Traceback" not in body["detail"]
