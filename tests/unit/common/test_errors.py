"""The error trees of both modules."""

from __future__ import annotations

import inspect
import re
from types import ModuleType

import pytest

import common.chat_errors
import common.errors
import worker.chat.errors
import worker.errors
import worker.models.errors
from common.errors import (
    BrokenError,
    CallerError,
    Fenced,
    InvalidParams,
    PayloadTooLarge,
    QueueFull,
    RateLimited,
    ServiceError,
    StoreUnavailable,
    StreamConflict,
    TooManyJobs,
    UnavailableError,
    UnknownServer,
    UnknownTool,
)
from common.job_errors import JobError, OutcomeUnknown
from worker.errors import AttemptLost, ServerGone, ToolProtocolError

GROUPS = {ServiceError, CallerError, UnavailableError, BrokenError, JobError, AttemptLost}
"""Never raised themselves."""


def classes_of(module: ModuleType) -> list[type[ServiceError]]:
    found = [cls for _, cls in inspect.getmembers(module, inspect.isclass) if cls.__module__ == module.__name__]
    return [cls for cls in found if issubclass(cls, ServiceError)]


ALL = [
    cls
    for module in (common.errors, common.chat_errors, worker.errors, worker.chat.errors, worker.models.errors)
    for cls in classes_of(module)
]


@pytest.mark.parametrize("module", [common.errors, worker.errors], ids=lambda module: module.__name__)
def test_the_tree_at_the_top_of_the_module_shows_every_class_once(module: ModuleType) -> None:
    """Each under its base, in the drawing as in the code."""
    drawn: dict[str, str] = {}
    branch: dict[int, str] = {}
    for depth_mark, name in re.findall(r"^((?:[│├└─ ]{4})*)([A-Z]\w+)", module.__doc__ or "", re.MULTILINE):
        depth = len(depth_mark) // 4
        branch[depth] = name
        if depth:
            assert name not in drawn
            drawn[name] = branch[depth - 1]

    assert drawn == {cls.__name__: cls.__base__.__name__ for cls in classes_of(module) if cls is not ServiceError}  # type: ignore[union-attr]


def test_every_error_that_can_be_raised_states_a_type_of_its_own() -> None:
    """A client tells errors apart by `type` alone."""
    raised = [cls for cls in ALL if cls not in GROUPS]
    types = [cls.type for cls in raised]

    assert len(set(types)) == len(types)
    assert [cls for cls in raised if "type" not in vars(cls)] == []
    assert set(types).isdisjoint({cls.type for cls in GROUPS})


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_code_and_status_of_an_error_agree(cls: type[ServiceError]) -> None:
    """A code of ours is the HTTP status; one of JSON-RPC's stands for a fault of the request or of ours."""
    assert 400 <= cls.status < 600
    assert cls.code == cls.status or cls.code in (-32700, -32600, -32601, -32602, -32603)
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", cls.type)


@pytest.mark.parametrize("cls", classes_of(common.errors), ids=lambda cls: cls.__name__)
def test_a_refusal_is_retryable_exactly_if_its_status_says_try_later(cls: type[ServiceError]) -> None:
    """429, 503 and 507 do."""
    assert cls.retryable == (cls.status in (429, 503, 507))


@pytest.mark.parametrize(
    "exc",
    [
        ServiceError("broken"),
        StoreUnavailable("no answer", err_code=10_008),
        QueueFull("srv", 5, 1.5),
        PayloadTooLarge(11, 10),
        Fenced("sessions", 7),
        ServerGone("it ended", exit_code=3, stderr="oops"),
        OutcomeUnknown(2, "w-1", 1_700_000_000_000, "it was not run again"),
    ],
    ids=lambda exc: type(exc).__name__,
)
def test_as_dict_is_type_message_retryable_and_the_facts(exc: ServiceError) -> None:
    """The same shape wherever an error stands."""
    told = exc.as_dict()

    assert list(told)[:3] == ["type", "message", "retryable"]
    assert told == {"type": exc.type, "message": str(exc), "retryable": exc.retryable} | exc.data


def test_a_full_queue_tells_limit_depth_and_when_to_come_back() -> None:
    """Enough to wait for, in the message and in the facts."""
    exc = QueueFull("srv", 5, 1.5)

    assert exc.data == {"server": "srv", "limit": 5, "depth": 5, "retry_after_s": 1.5}
    assert "5 jobs" in exc.message
    assert "1.5 s" in exc.message


def test_a_tenant_that_is_too_fast_is_told_its_rate_too() -> None:
    """Limit and depth are those of its burst."""
    exc = RateLimited(50, 100, 100, 0.02)

    assert exc.data == {"limit": 100, "depth": 100, "rate_per_s": 50, "retry_after_s": 0.02}
    assert "50 times a second" in exc.message
    assert "0.02 s" in exc.message


def test_a_session_with_too_many_jobs_is_told_how_many_it_has() -> None:
    """Which may be more than the limit, where another gateway accepted some at the same time."""
    exc = TooManyJobs(256, 258, 1.0)

    assert exc.data == {"limit": 256, "depth": 258, "retry_after_s": 1.0}
    assert "258 jobs" in exc.message
    assert "256 at once" in exc.message


def test_what_is_unknown_is_answered_with_what_there_is() -> None:
    """Known names stand in the message; an empty list reads as a sentence too."""
    assert UnknownServer("x", ["exec", "time"]).message == "unknown server 'x'; the catalog has: exec, time"
    assert UnknownServer("x", []).message == "unknown server 'x'; the catalog has: no servers"
    assert UnknownTool("time", "x", []).message == "server 'time' has no tool 'x'; it has: no tools"


def test_every_problem_of_the_params_stands_in_the_message() -> None:
    """With its path."""
    problems = [{"path": "$.a", "message": "missing"}, {"path": "$.b[0]", "message": "too long"}]

    assert InvalidParams("invalid params", problems).message == "invalid params: $.a: missing; $.b[0]: too long"


def test_a_stream_conflict_names_field_had_and_wanted_and_the_way_out() -> None:
    """An operator can act on it without the source."""
    exc = StreamConflict("JOBS", {"max_age": (60, 3600), "storage": ("memory", "file")})

    assert "max_age is 60, wanted 3600" in exc.message
    assert "storage is 'memory', wanted 'file'" in exc.message
    assert "nats stream edit JOBS" in exc.message


def test_a_servers_json_rpc_error_keeps_code_and_data_and_has_a_message_in_any_case() -> None:
    """The server's words as they are, or a sentence that says that there were none."""
    told = ToolProtocolError({"code": -32000, "message": "no", "data": {"a": 1}})

    assert (told.message, told.data) == ("no", {"code": -32000, "data": {"a": 1}})
    assert ToolProtocolError({}).message == "the server gave no message"
