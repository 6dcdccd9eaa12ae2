"""JSON-RPC 2.0 messages, as plain dicts: requests in, results, errors and event notifications out."""

from __future__ import annotations

from typing import Any

from common import metrics
from common.errors import InvalidParams, InvalidRequest, ServiceError
from common.feed import StoredEvent

RequestId = str | int


def id_of(message: Any) -> RequestId | None:
    """The id to answer with: that of the message where it has a usable one, else null."""
    value = message.get("id") if isinstance(message, dict) else None
    return value if isinstance(value, (str, int)) and not isinstance(value, bool) else None


def parse(message: Any) -> tuple[str, dict[str, Any]]:
    """Method and params of a request.

    Raises:
        InvalidRequest: if it is no request with an id.
        InvalidParams: if its params are not an object.
    """
    if isinstance(message, list):
        raise InvalidRequest("batches are not taken: send one request a frame")
    if not isinstance(message, dict):
        raise InvalidRequest("a request is an object")
    if message.get("jsonrpc") != "2.0":
        raise InvalidRequest('a request has "jsonrpc": "2.0"')
    method = message.get("method")
    if not isinstance(method, str):
        raise InvalidRequest("a request has a method, which is a string")
    if id_of(message) is None:
        raise InvalidRequest("a request has an id, a string or an integer: nothing here goes unanswered")
    params = message.get("params", {})
    if not isinstance(params, dict):
        raise InvalidParams("invalid params", [{"path": "$", "message": "must be an object"}])
    return method, params


def result(request_id: RequestId | None, value: dict[str, Any]) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": request_id, "result": value}


def error(request_id: RequestId | None, exc: ServiceError) -> dict[str, Any]:
    metrics.REQUESTS_REFUSED.labels(exc.type).inc()
    return {
        "jsonrpc": "2.0",
        "id": request_id,
        "error": {"code": exc.code, "message": exc.message, "data": exc.as_dict()},
    }


def event_params(stored: StoredEvent) -> dict[str, Any]:
    """An event as clients see it, on both doors."""
    event = stored.event
    return {
        "session": event.session,
        "job": event.job,
        "seq": stored.seq,
        "attempt": event.attempt,
        "type": event.type,
        "time_ms": event.time_ms,
        "data": event.data,
    }


def notification(stored: StoredEvent) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": "notifications/event", "params": event_params(stored)}
