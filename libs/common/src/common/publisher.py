"""Publishing to JetStream, with the store's acknowledgement as a future.

nats-py's `publish` waits for one acknowledgement at a time, and its `publish_async` never resolves a refused
publish (2.16). Here any number may be under way, over one subscription, at about half the CPU of `publish`.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from common import headers

CONNECTION_FAULTS: Final = (nats.errors.Error, OSError, RuntimeError)
"""What a connection that is being lost raises where it is used. RuntimeError is uvloop's, for a closed transport."""
ACK_TIMEOUT_S: Final = 5.0
LEADERLESS_S: Final = 12.0
"""How long a stream may be without a leader: nodes wait 4 to 9 s before they elect another (nats-server 2.15)."""
LAST_LOOK_S: Final = 0.05
"""For an answer that has come and was not looked at until it was overdue."""
RESEND_S: Final = 0.1
_ID_IN_PROCESS: Final = 10158
"""JetStream's code for a message whose first copy is still on its way through the cluster."""


BATCH_LIMIT: Final = 1_000
"""Messages of one atomic batch; the server's own limit."""


class Outgoing(NamedTuple):
    """What is to be published."""

    subject: str
    payload: bytes
    headers: dict[str, str]


class Acknowledgement:
    """One publish under way."""

    def __init__(self, answer: asyncio.Future[int], send_again: Callable[[], Awaitable[asyncio.Future[int]]]) -> None:
        self._answer = answer
        self._send_again = send_again
        self._due = asyncio.get_running_loop().time() + ACK_TIMEOUT_S

    async def seq(self) -> int:
        """The number that the message got; a repeat of a known `Nats-Msg-Id` gets the first one's.

        While the stream has no leader nobody takes the message: it is sent again then, which cannot store it twice.

        Raises:
            nats.js.errors.APIError: if the store refused it.
            nats.js.errors.NoStreamResponseError: if no stream takes the subject, also after a while.
            TimeoutError: if the store did not answer; the message may or may not have been stored.
        """
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + LEADERLESS_S
        while True:
            try:
                # From when it was sent: of many that are lost together only the first one is waited for.
                async with asyncio.timeout_at(max(self._due, loop.time() + LAST_LOOK_S)):
                    return await self._answer
            except (nats.js.errors.NoStreamResponseError, nats.js.errors.APIError) as exc:
                again = not isinstance(exc, nats.js.errors.APIError) or exc.err_code == _ID_IN_PROCESS
                if not again or loop.time() >= give_up_at:
                    raise
            await asyncio.sleep(RESEND_S)
            self._answer = await self._send_again()
            self._due = loop.time() + ACK_TIMEOUT_S


class Publisher:
    """One connection's publishes. `open()` comes first."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._inbox = client.new_inbox()
        self._waiting: dict[str, asyncio.Future[int]] = {}
        self._count = 0

    async def open(self) -> None:
        await self._client.subscribe(f"{self._inbox}.*", cb=self._on_answer)

    async def send(self, subject: str, payload: bytes, message_headers: dict[str, str]) -> Acknowledgement:
        """Publish; what is sent in turn reaches the store in turn.

        Raises:
            nats.errors.Error: if it cannot even be sent.
        """

        async def send() -> asyncio.Future[int]:
            return await self._send(subject, payload, message_headers)

        return Acknowledgement(await send(), send)

    async def send_batch(self, messages: Sequence[Outgoing]) -> Acknowledgement:
        """Publish messages that are stored together or not at all (NATS ADR-50); acknowledged is the last one.

        One fence, on the first, is enough for those of one subject.

        Raises:
            nats.errors.Error: if it cannot even be sent.
        """
        if len(messages) == 1:
            return await self.send(*messages[0])

        async def send() -> asyncio.Future[int]:
            batch = secrets.token_hex(8)
            for number, (subject, payload, own_headers) in enumerate(messages[:-1], 1):
                place = {headers.BATCH_ID: batch, headers.BATCH_SEQUENCE: str(number)}
                await self._client.publish(subject, payload, headers=own_headers | place)
            subject, payload, own_headers = messages[-1]
            place = {headers.BATCH_ID: batch, headers.BATCH_SEQUENCE: str(len(messages)), headers.BATCH_COMMIT: "1"}
            return await self._send(subject, payload, own_headers | place)

        return Acknowledgement(await send(), send)

    async def _send(self, subject: str, payload: bytes, message_headers: dict[str, str]) -> asyncio.Future[int]:
        self._count += 1
        token = str(self._count)
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(lambda done: self._forget(token, done))
        self._waiting[token] = answer
        try:
            await self._client.publish(subject, payload, reply=f"{self._inbox}.{token}", headers=message_headers)
        except BaseException:
            answer.cancel()
            raise
        return answer

    def _forget(self, token: str, done: asyncio.Future[int]) -> None:
        self._waiting.pop(token, None)
        if not done.cancelled():
            done.exception()  # looked at: nobody may be waiting for it any more

    async def _on_answer(self, msg: Msg) -> None:
        answer = self._waiting.get(msg.subject.rsplit(".", 1)[-1])
        if answer is None or answer.done():
            return
        if msg.headers and headers.STATUS in msg.headers:
            answer.set_exception(nats.js.errors.NoStreamResponseError())
            return
        said = json.loads(msg.data)
        if error := said.get("error"):
            refusal = nats.js.errors.APIError(
                code=error.get("code"), err_code=error.get("err_code"), description=error.get("description")
            )
            answer.set_exception(refusal)
        else:
            answer.set_result(int(said["seq"]))
