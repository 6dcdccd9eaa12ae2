"""Serving: the listening socket, Hypercorn's settings each on purpose, and the way to an end."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from hypercorn.asyncio.worker_context import EventWrapper
from hypercorn.config import Config
from starlette.types import ASGIApp

from common.log import get
from gateway.app import Front, Gateway, create_app
from gateway.client_connection import ClientConnection
from gateway.settings import GatewaySettings

_log = get(__name__)

BACKLOG: Final = 1_024
SILENT_PEER_S: Final = 60
"""A client that is gone without a word, or has no room for what is sent to it, is cut by the kernel after this long, or
after twice `stalled_client_s` where that is more. It can resume."""
CUT_FRAME_FACTOR: Final = 4
"""Above this many times max_request_bytes a frame is not even read: the socket is closed with 1009."""
QUEUED_MESSAGES: Final = 4
"""Frames or body parts of one connection that wait in Hypercorn to be read."""


def listen(host: str, port: int) -> socket.socket:
    """A socket for `serve()`.

    Raises:
        OSError: if the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    # Accepted connections inherit it. Without it an event and an answer in a row take 40 ms: asyncio sets it only on
    # sockets whose protocol number it can see.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


async def serve(settings: GatewaySettings, stop: asyncio.Event, listener: socket.socket | None = None) -> None:
    """Serve until `stop` is set, then drain and return, within `drain_timeout_s` and the closing of NATS.

    The order: not ready, and no new connections; open ones answer what they owe and are closed with 1012;
    those that are left are cut; NATS is left.

    Raises:
        OSError: if the address cannot be had.
        StreamConflict, NotClustered: if the streams cannot be as the settings ask.
    """
    listener = listener or listen(settings.host, settings.port)
    # Linux knows this one; elsewhere silent peers are held for longer.
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        silent_s = max(SILENT_PEER_S, 2 * settings.stalled_client_s)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(silent_s * 1000))
    host, port = listener.getsockname()[:2]
    app = create_app(settings)
    gateway: Gateway = app.state.gateway
    async with app.router.lifespan_context(app), _accepting(Front(app), listener, settings):
        _log.info("gateway listening", url=f"http://{f'[{host}]' if ':' in host else host}:{port}")
        await _first_of(stop, gateway.failed)
        _log.info("gateway draining", connections=gateway.connections.count)
        gateway.connections.start_draining()
    _log.info("gateway stopped")
    if gateway.failure:
        raise gateway.failure


async def _first_of(*events: asyncio.Event) -> None:
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(event.wait()) for event in events]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()


@asynccontextmanager
async def _accepting(app: ASGIApp, listener: socket.socket, settings: GatewaySettings) -> AsyncIterator[None]:
    """Serve whoever connects. On leaving nobody is let in any more, and whoever is in has the drain's time to go."""
    config = _config(settings)
    ending = EventWrapper()
    open_connections: dict[asyncio.Task[None], ClientConnection] = {}

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        open_connections[task] = ClientConnection(app, config, ending, reader, writer, settings.stalled_client_s)
        try:
            await open_connections[task]
        finally:
            del open_connections[task]

    server = await asyncio.start_server(on_connection, sock=listener, backlog=BACKLOG)
    try:
        yield
    finally:
        server.close()
        await ending.set()
        if open_connections:
            await asyncio.wait(open_connections, timeout=settings.drain_timeout_s)
        for connection in open_connections.values():
            connection.cut()
        if open_connections:
            # What holds them now is a request to NATS, which has a timeout of its own.
            await asyncio.wait(open_connections)


def _config(settings: GatewaySettings) -> Config:
    config = Config()
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn.error")  # as every library's: warnings and worse, to our log
    config.include_server_header = False
    config.read_timeout = None  # an idle WebSocket is a good one; silent peers are the kernel's to find
    config.keep_alive_timeout = 75  # above what load balancers use, so that it is not us who close under a request
    config.keep_alive_max_requests = 100_000
    config.max_app_queue_size = QUEUED_MESSAGES
    config.h11_max_incomplete_size = 16 * 1024
    config.h2_max_concurrent_streams = 100
    config.h2_max_header_list_size = 16 * 1024
    config.websocket_max_message_size = settings.max_request_bytes * CUT_FRAME_FACTOR
    config.websocket_ping_interval = settings.ping_interval_s
    return config
