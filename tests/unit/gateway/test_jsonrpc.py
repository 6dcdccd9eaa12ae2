"""JSON-RPC messages."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidParams, InvalidRequest, QueueFull
from common.feed import StoredEvent
from common.schema import Event
from gateway import jsonrpc


@pytest.mark.parametrize(
    ("message", "request_id"),
    [
        ({"id": 1}, 1),
        ({"id": "a"}, "a"),
        ({"id": 0}, 0),
        ({"id": ""}, ""),
        ({"id": None}, None),
        ({"id": True}, None),
        ({"id": 1.0}, None),
        ({"id": [1]}, None),
        ({}, None),
        ([], None),
        ("x", None),
    ],
)
def test_an_answer_carries_the_id_where_it_is_a_string_or_an_integer(message: Any, request_id: Any) -> None:
    """A boolean is no integer."""
    assert jsonrpc.id_of(message) is request_id


def test_params_may_be_left_out() -> None:
    """JSON-RPC allows that."""
    assert jsonrpc.parse({"jsonrpc": "2.0", "id": 1, "method": "m"}) == ("m", {})


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["jsonrpc", "id", "method", "params"]), inner | st.just("2.0"))
    ),
)


@given(anything)
def test_whatever_comes_is_a_request_or_a_refusal(message: Any) -> None:
    """Never another exception."""
    jsonrpc.id_of(message)
    try:
        method, params = jsonrpc.parse(message)
    except (InvalidRequest, InvalidParams):
        return
    assert isinstance(method, str)
    assert isinstance(params, dict)


def test_an_error_carries_its_facts_beside_code_and_message() -> None:
    """So that a client needs to parse no text."""
    error = jsonrpc.error("a", QueueFull("math", 3, 1.0))

    assert error["error"]["code"] == 429
    assert error["error"]["message"] == error["error"]["data"]["message"]
    assert error["error"]["data"]["type"] == "queue_full"
    assert error["error"]["data"]["retry_after_s"] == 1.0


def test_a_notification_says_all_of_its_event() -> None:
    """As docs/protocol.md lists it."""
    event = Event(job="j", session="s", attempt=2, type="progress", time_ms=7, data={"progress": 1})

    assert jsonrpc.notification(StoredEvent(5, event)) == {
        "jsonrpc": "2.0",
        "method": "notifications/event",
        "params": {
            "session": "s",
            "job": "j",
            "seq": 5,
            "attempt": 2,
            "type": "progress",
            "time_ms": 7,
            "data": {"progress": 1},
        },
    }
