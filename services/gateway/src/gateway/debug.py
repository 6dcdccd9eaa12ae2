"""What the process holds in memory, for operators: `GET /debug/memory`, where DEBUG_MEMORY is set."""

from __future__ import annotations

from collections.abc import Collection

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from common.errors import OperatorsOnly
from common.runtime import memory_report
from gateway.authentication import TENANT
from gateway.connections import Connections


class Debug:
    def __init__(self, connections: Connections, operators: Collection[str]) -> None:
        self._connections = connections
        self._operators = frozenset(operators)

    def routes(self) -> list[Route]:
        return [Route("/memory", self._memory)]

    async def _memory(self, request: Request) -> Response:
        if request.scope["state"][TENANT] not in self._operators:
            raise OperatorsOnly("debug/memory")
        # Here and not in a thread: what is counted must not change meanwhile.
        held = {"connections": self._connections.count, "sessions": self._connections.sessions}
        return JSONResponse({**held, **memory_report()})
