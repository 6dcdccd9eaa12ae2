"""Errors over HTTP: `application/problem+json` (RFC 9457) with the facts of the error."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from common import metrics
from common.errors import ServiceError, Unauthenticated, UnavailableError
from gateway.codec import encode_json

MEDIA_TYPE: Final = "application/problem+json"
UNAVAILABLE_RETRY_AFTER_S: Final = 1.0


class InternalError(ServiceError):
    """A fault of ours that the caller learns nothing about; the log has it."""

    def __init__(self) -> None:
        super().__init__("internal error; the log of the gateway says more")


def problem(exc: ServiceError) -> Response:
    """The answer to a refused request. Also denies a WebSocket upgrade."""
    metrics.REQUESTS_REFUSED.labels(exc.type).inc()
    facts = exc.as_dict()
    body = {
        "type": facts.pop("type"),
        "title": exc.type.replace("_", " "),
        "status": exc.status,
        "detail": facts.pop("message"),
        **facts,
    }
    headers = {}
    retry_after_s = exc.data.get("retry_after_s", UNAVAILABLE_RETRY_AFTER_S)
    if exc.status == HTTPStatus.TOO_MANY_REQUESTS or isinstance(exc, UnavailableError):
        headers["Retry-After"] = str(math.ceil(retry_after_s))
    if isinstance(exc, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    return _response(exc.status, body, headers)


def on_service_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, ServiceError)
    return problem(exc)


def on_http_exception(request: Request, exc: Exception) -> Response:
    """What the router refuses, an unknown path or a method: RFC 9457's type for "the status says it all"."""
    assert isinstance(exc, HTTPException)
    body = {"type": "about:blank", "title": HTTPStatus(exc.status_code).phrase, "status": exc.status_code}
    return _response(exc.status_code, body, dict(exc.headers or {}))


def _response(status: int, body: dict[str, Any], headers: dict[str, str]) -> Response:
    return Response(encode_json(body), status, headers, MEDIA_TYPE)
