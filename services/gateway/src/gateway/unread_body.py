"""A request that is answered before its body was read must not hold its connection for ever."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class UnreadBody:
    """ASGI middleware: reads on while the last part of an early answer is sent.

    Hypercorn puts the body into a bounded queue and, once the answer is out, the disconnect as well. With the
    queue full of a body that nobody reads (a 401, a 413) that last put would wait for ever, and the connection
    with it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _has_body(scope):
            await self._app(scope, receive, send)
            return
        unread = True

        async def receiving() -> Message:
            nonlocal unread
            message = await receive()
            unread = message.get("more_body", False)
            return message

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False) and unread:
                await _send_while_reading(message, receive, send)
            else:
                await send(message)

        await self._app(scope, receiving, sending)


async def _send_while_reading(message: Message, receive: Receive, send: Send) -> None:
    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(_discard(receive))
        await send(message)
        reading.cancel()


async def _discard(receive: Receive) -> None:
    while (await receive())["type"] == "http.request":
        continue


def _has_body(scope: Scope) -> bool:
    return any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"])
