"""The HTTP door: the same methods as resources, and a session's events as Server-Sent Events."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from common.errors import InvalidParams, InvalidRequest, ParseError, PayloadTooLarge, ServiceError
from common.log import get
from gateway.authentication import TENANT
from gateway.codec import decode_json, encode_json
from gateway.connections import Connections
from gateway.conversation import as_markdown
from gateway.event_stream import EventStream
from gateway.methods import Caller, Methods
from gateway.problem import InternalError, problem
from gateway.sessions import Position
from gateway.settings import GatewaySettings
from gateway.store import Store
from gateway.trace import traceparent

_log = get(__name__)

BODY_WITHIN_S: Final = 30.0
_EVENT_ID: Final = re.compile(r"([0-9A-Za-z]{1,64}):([0-9]{1,19})")


class Resource(NamedTuple):
    """One method as an HTTP resource. Params come from the path, and from the body or the query where one may be."""

    verb: str
    path: str
    method: str
    status: int = 200
    has_body: bool = False
    header: tuple[str, str] | None = None
    """A header that stands for a param: the names of both."""
    has_query: bool = False
    markdown: Callable[[dict[str, Any]], str] | None = None
    """The result for people, where the request accepts `text/markdown`."""


RESOURCES: Final = (
    Resource("POST", "/sessions", "session/open", 201, has_body=True),
    Resource("DELETE", "/sessions/{session}", "session/close"),
    Resource("GET", "/servers", "servers/list"),
    Resource("GET", "/servers/{server}/tools", "tools/list"),
    Resource("POST", "/sessions/{session}/jobs", "tools/call", 202, True, ("Idempotency-Key", "idempotencyKey")),
    Resource("POST", "/sessions/{session}/chat", "chat/send", 202, True, ("Idempotency-Key", "idempotencyKey")),
    Resource("POST", "/sessions/{session}/chat/calls/{job}/approve", "chat/approve"),
    Resource("POST", "/sessions/{session}/chat/calls/{job}/deny", "chat/deny"),
    Resource("GET", "/sessions/{session}/conversation", "conversation/get", has_query=True, markdown=as_markdown),
    Resource("DELETE", "/sessions/{session}/conversation", "conversation/delete"),
    Resource("POST", "/conversations/dictionaries", "conversations/train_dictionary", 201),
    Resource("POST", "/conversations/import", "conversations/import", has_body=True),
    Resource("GET", "/sessions/{session}/jobs/{job}", "job/get"),
    Resource("DELETE", "/sessions/{session}/jobs/{job}", "job/cancel", 202),
    Resource("POST", "/sessions/{session}/servers/{server}/files/put", "files/put", 202, has_body=True),
    Resource("POST", "/sessions/{session}/servers/{server}/files/get", "files/get", 202, has_body=True),
    Resource("POST", "/sessions/{session}/servers/{server}/files/list", "files/list", 202, has_body=True),
    Resource("GET", "/dead-letters", "dead_letters/list", has_query=True),
    Resource("GET", "/dead-letters/{letter}", "dead_letters/show"),
    Resource("POST", "/dead-letters/{letter}/redrive", "dead_letters/redrive", 202),
    Resource("DELETE", "/dead-letters/{letter}", "dead_letters/delete"),
    Resource("DELETE", "/dead-letters", "dead_letters/purge", has_query=True),
    Resource("GET", "/status", "status/get"),
)

Endpoint = Callable[[Request], Awaitable[Response]]


class HttpDoor:
    """The routes below `/v1`; `Authentication` stands before them."""

    def __init__(self, settings: GatewaySettings, store: Store, methods: Methods, connections: Connections) -> None:
        self._settings = settings
        self._store = store
        self._methods = methods
        self._connections = connections

    def routes(self) -> list[Route]:
        resources = [Route(r.path, self._endpoint(r), methods=[r.verb], name=r.method) for r in RESOURCES]
        return [*resources, Route("/sessions/{session}/events", answered(self._events), methods=["GET"])]

    def _endpoint(self, resource: Resource) -> Endpoint:
        async def call(request: Request) -> Response:
            params: dict[str, Any] = dict(request.query_params) if resource.has_query else {}
            if resource.has_body:
                params = await self._params(request)
            for name, value in request.path_params.items():
                if name in params:
                    raise InvalidParams("invalid params", [{"path": f"$.{name}", "message": "stands in the path"}])
                params[name] = value
            if resource.header:
                _add_header(request, *resource.header, params)
            result = await self._methods.call(_caller(request), resource.method, params, as_text=resource.has_query)
            if resource.markdown and "text/markdown" in request.headers.get("accept", ""):
                return Response(resource.markdown(result), resource.status, media_type="text/markdown")
            return Response(encode_json(result), resource.status, media_type="application/json")

        return answered(call)

    async def _events(self, request: Request) -> Response:
        if request.method != "GET":
            raise HTTPException(405, headers={"Allow": "GET"})  # the router adds HEAD, which would never end
        position = _position(request.headers.get("last-event-id"))
        opened = {"session": request.path_params["session"]}
        if position:
            opened |= {"epoch": position.epoch, "seq": position.seq}
        joined = await self._methods.call(_caller(request), "session/open", opened)
        return EventStream(self._settings, self._store, self._connections, joined)

    async def _params(self, request: Request) -> dict[str, Any]:
        """The body as an object; none is an empty one.

        Raises:
            PayloadTooLarge: as soon as more than the limit has come, or is announced.
            ParseError: if it is not JSON.
            InvalidRequest: if it is not an object, or does not come in time.
        """
        try:
            async with asyncio.timeout(BODY_WITHIN_S):
                body = await _body(request, self._settings.max_request_bytes)
        except TimeoutError as exc:
            raise InvalidRequest(f"the body did not come within {BODY_WITHIN_S:g} s") from exc
        if not body:
            return {}
        try:
            params = decode_json(body.decode())
        except UnicodeDecodeError as exc:
            raise ParseError(f"not JSON: {exc}") from exc
        if not isinstance(params, dict):
            raise InvalidRequest("the body is an object")
        return params


def answered(endpoint: Endpoint) -> Endpoint:
    """`endpoint`, whose faults of our own are answered too."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except (ServiceError, HTTPException):
            raise
        except Exception:  # noqa: BLE001 - the client is owed an answer, and the log has the rest
            _log.exception("request failed", path=request.url.path)
            return problem(InternalError())

    return answer


def refuse_announced(request: Request, limit: int) -> None:
    """
    Raises:
        PayloadTooLarge: if the body says itself that it has more than `limit` bytes.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise PayloadTooLarge(int(announced), limit)


async def _body(request: Request, limit: int) -> bytes:
    refuse_announced(request, limit)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise PayloadTooLarge(len(body), limit)
    return bytes(body)


def _add_header(request: Request, header: str, param: str, params: dict[str, Any]) -> None:
    value = request.headers.get(header)
    if value is None:
        return
    if params.setdefault(param, value) != value:
        raise InvalidParams("invalid params", [{"path": f"$.{param}", "message": f"differs from the header {header}"}])


def _caller(request: Request) -> Caller:
    return Caller(request.scope["state"][TENANT], traceparent(request.headers.get("traceparent")))


def _position(last_event_id: str | None) -> Position | None:
    if not last_event_id:
        return None
    found = _EVENT_ID.fullmatch(last_event_id)
    if not found:
        problems = [{"path": "Last-Event-ID", "message": "must be the id of an event, <epoch>:<seq>"}]
        raise InvalidParams("invalid header", problems)
    return Position(found[1], int(found[2]))
