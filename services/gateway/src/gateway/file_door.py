"""The HTTP door of uploads: a file as the body of a PUT, streamed on as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from common.errors import InvalidRequest
from gateway.authentication import TENANT
from gateway.codec import encode_json
from gateway.files import Files
from gateway.http import answered, refuse_announced
from gateway.params import FileParams, validated
from gateway.sessions import Sessions

PIECE_WITHIN_S: Final = 30.0
"""How long the next piece of a body may take."""


class FileDoor:
    """`Authentication` stands before it."""

    def __init__(self, sessions: Sessions, files: Files) -> None:
        self._sessions = sessions
        self._files = files

    def routes(self) -> list[Route]:
        path = "/sessions/{session}/servers/{server}/files/{path:path}"
        return [Route(path, answered(self._put), methods=["PUT"])]

    async def _put(self, request: Request) -> Response:
        tenant = request.scope["state"][TENANT]
        where = validated(FileParams, request.path_params)
        refuse_announced(request, self._files.max_upload_bytes)
        await self._sessions.require_allowed(tenant, where.session, where.server, None)
        accepted = await self._files.put(tenant, where.session, where.server, where.path, _body(request))
        return Response(encode_json(accepted), 202, media_type="application/json")


async def _body(request: Request) -> AsyncGenerator[bytes]:
    """
    Raises:
        InvalidRequest: if it ends early, or stands still.
    """
    pieces = request.stream()
    while True:
        try:
            async with asyncio.timeout(PIECE_WITHIN_S):
                piece = await anext(pieces, None)
        except TimeoutError as exc:
            raise InvalidRequest(f"nothing of the body came for {PIECE_WITHIN_S:g} s") from exc
        except ClientDisconnect as exc:
            raise InvalidRequest("the body ended early") from exc
        if piece is None:
            return
        yield piece
