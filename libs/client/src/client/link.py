"""A session's connection, renewed at whichever gateway answers: the part of the client that outlives gateways."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from client.connection import Connection, Dialer, OnEvent
from client.errors import ClientError, ConnectionLost, ProtocolFault, Refused
from client.event import Event, Position
from client.patience import Patience

REQUEST_TIMEOUT_S: Final = 30.0

_log = logging.getLogger("client")


class Link:
    """Keeps one connection joined to one session.

    Each event comes once and in order, over any number of connections: after each join the gateway sends what
    was missed first. Where it no longer can, `on_gap` is called before the events that are still there.
    """

    def __init__(
        self,
        dialer: Dialer,
        on_event: OnEvent,
        on_gap: Callable[[], None],
        *,
        session: str | None,
        position: Position | None,
        reconnect_s: float,
        said: Mapping[str, Any] | None = None,
    ) -> None:
        self._dialer = dialer
        self._on_event = on_event
        self._on_gap = on_gap
        self._session = session
        self._position = position
        self._reconnect_s = reconnect_s
        self._said = said or {}
        """What a new session is opened with."""
        self._connection: Connection | None = None
        self._failure: ClientError | None = None
        self._settled = asyncio.Event()
        """Set while there is a connection, and for good after a failure."""

    @property
    def session(self) -> str:
        assert self._session is not None, "known from the first join on"
        return self._session

    @property
    def position(self) -> Position:
        """Of the last event that was handed on."""
        assert self._position is not None, "known from the first join on"
        return self._position

    @property
    def failure(self) -> ClientError | None:
        """Why there will be no connection any more."""
        return self._failure

    async def up(self) -> Connection:
        """The connection, as soon as there is one.

        Raises:
            ConnectionLost: if there was none for `reconnect_s`.
            Refused: if the gateways do not take the key or do not know the session any more.
        """
        while True:
            if self._failure is not None:
                raise self._failure
            if self._connection is not None:
                return self._connection
            await self._settled.wait()

    async def request(
        self, method: str, params: dict[str, Any], *, resend: bool, timeout_s: float = REQUEST_TIMEOUT_S
    ) -> dict[str, Any]:
        """The result of a method, over as many connections as it takes.

        A request that was under way when its connection died is sent again only with `resend`.

        Raises:
            ClientError: as `Connection.request` and `up`.
        """
        while True:
            connection = await self.up()
            try:
                return await connection.request(method, params, timeout_s)
            except ConnectionLost as lost:
                if self._connection is connection:
                    self._down()  # sooner than `keep` may notice, or this loop would not wait
                if lost.sent and not resend:
                    raise

    async def keep(self) -> None:
        """Connect, and reconnect whenever the connection ends. Returns when that has failed for good: see `failure`.

        A new link tries each gateway once. One that had a position tries them in turn for `reconnect_s`.
        """
        try:
            self._fail(await self._keep())
        finally:
            if self._failure is None:
                self._fail(ConnectionLost("the connection was closed by this side"))

    async def _keep(self) -> ClientError:
        urls = self._dialer.urls
        patience = Patience(self._reconnect_s)
        tries = 0
        while True:
            reason = await self._connect(urls[tries % len(urls)], patience)
            tries += 1
            if isinstance(reason, ProtocolFault) or (isinstance(reason, Refused) and not reason.retryable):
                return reason
            if self._position is None:
                if tries == len(urls):
                    return reason
                continue
            delay_s = patience.failed()
            if delay_s is None:
                said = f"the connection was lost and did not come back within {self._reconnect_s:g} s: {reason}"
                return ConnectionLost(said)
            _log.info("%s; trying again in %.1f s", reason, delay_s)
            await asyncio.sleep(delay_s)

    async def _connect(self, url: str, patience: Patience) -> ClientError:
        """Serve one connection until it ends. Returns why it ended."""
        said = ""
        try:
            async with self._dialer.dial(url, self._take) as connection:
                await self._join(connection)
                patience.succeeded()
                self._connection = connection
                self._settled.set()
                try:
                    await connection.read()
                finally:
                    self._down()
                said = connection.closed_because
        except ClientError as exc:
            return exc
        return ConnectionLost(f"{url} closed the connection" + (f": {said}" if said else ""))

    async def _join(self, connection: Connection) -> None:
        params: dict[str, Any] = {}
        if self._session is not None:
            params["session"] = self._session
        else:
            params |= self._said
        if (known := self._position) is not None:
            params |= {"epoch": known.epoch, "seq": known.seq}
        opened = await connection.handshake("session/open", params, REQUEST_TIMEOUT_S)
        self._session = opened["session"]
        if known is None:
            self._position = Position(opened["epoch"], opened["seq"])
        elif not opened["recovered"]:
            _log.warning("events of session %s after %s are no longer in the store", self._session, known)
            self._position = Position(opened["epoch"], opened["seq"])
            self._on_gap()

    async def _take(self, event: Event) -> None:
        known = self._position
        # Before the first join nobody reads; later an event may come again.
        if known is not None and event.seq > known.seq:
            await self._on_event(event)
            self._position = Position(known.epoch, event.seq)

    def _down(self) -> None:
        self._connection = None
        self._settled.clear()

    def _fail(self, reason: ClientError) -> None:
        self._failure = reason
        self._settled.set()
