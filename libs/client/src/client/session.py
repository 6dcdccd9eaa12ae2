"""A session: calls, their events, and what may be asked beside them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from client.background import background
from client.chat import Turns
from client.collected import Collected
from client.connection import Dialer, OnEvent
from client.conversation import Conversation, Conversations
from client.dead_letters import DeadLetters
from client.endpoint import endpoint
from client.errors import ClientError, ConnectionLost
from client.event import Event, Job, JobResult, Position
from client.files import Files
from client.link import Link
from client.reader import Reader
from client.readers import Readers, Tool
from client.wire import Protocol, codec

if TYPE_CHECKING:
    from client.artifact import Artifact

DEFAULT_URL: Final = "http://127.0.0.1:8080"
DEFAULT_KEY: Final = "development"

CLOSE_TIMEOUT_S: Final = 5.0
FIND_S: Final = 3.0
"""How long events are watched for the job of a call whose answer was lost with its connection."""


@asynccontextmanager
async def connect(
    url: str | Sequence[str] = DEFAULT_URL,
    *,
    key: str = DEFAULT_KEY,
    session: str | None = None,
    keep: bool = False,
    record: bool = False,
    allow: Sequence[str] | None = None,
    protocol: Protocol = "mcp.json",
    reconnect_s: float = 30.0,
) -> AsyncIterator[Session]:
    """A session at a gateway.

    Without `session` a new one is opened, and closed on leaving unless `keep` is set: then its jobs go on and
    its containers stay leased. With `session` (its id) that one is joined, and stays when this side leaves.

    Args:
        url: Address of a gateway (http, https, ws or wss), or of several of one cluster.
        key: The API key.
        record: A new session keeps every call and its result in its conversation.
        allow: What may be called in a new session, each `<server>` or `<server>/<tool>`; without it everything.
        protocol: `mcp.json`, or `mcp.msgpack` which is faster and needs the package msgpack.
        reconnect_s: How long a lost connection may take to come back before calls fail.

    Raises:
        Unreachable: if no gateway answers.
        Refused: if the key is wrong or the session is not known.
        ValueError: if an address is none.
    """
    urls = tuple(endpoint(each) for each in ([url] if isinstance(url, str) else url))
    dialer = Dialer(urls, key, codec(protocol))
    async with background() as group:
        said = {"record": record or None, "allow": None if allow is None else list(allow)}
        new = {name: value for name, value in said.items() if value is not None}
        opened = Session(dialer, group, session, reconnect_s, new)
        group.create_task(opened.serve())
        await opened.ready()
        try:
            yield opened
        finally:
            if session is None and not keep:
                # It is best effort: what cannot be closed now ends by its time to live.
                with suppress(ClientError, TimeoutError):
                    async with asyncio.timeout(CLOSE_TIMEOUT_S):
                        await opened.close()


class Session:
    """Made by `connect`.

    A slow reader slows nobody else down and costs a bounded amount of memory: when more than READ_AHEAD events
    wait for it, it goes on over a connection of its own, which the gateway feeds from the store at its pace.

    Every method raises `Refused`, `ConnectionLost` or `NoAnswer` where it cannot be served; while the client
    reconnects, methods wait.
    """

    def __init__(
        self,
        dialer: Dialer,
        group: asyncio.TaskGroup,
        session: str | None,
        reconnect_s: float,
        said: Mapping[str, Any],
    ) -> None:
        self._dialer = dialer
        self._group = group
        self._own = session is None
        self._reconnect_s = reconnect_s
        self._readers = Readers()
        self._turns = Turns(self._ask, self._readers, lambda: self.position)
        self._link = self._new_link(self._route, self._bridge_all, session=session, position=None, said=said)

    def _new_link(self, on_event: OnEvent, on_gap: Callable[[], None], **where: Any) -> Link:
        return Link(self._dialer, on_event, on_gap, reconnect_s=self._reconnect_s, **where)

    @property
    def id(self) -> str:
        return self._link.session

    @property
    def position(self) -> Position:
        """Of the newest event that came: where a later `events` can go on."""
        return self._link.position

    # --- calls ----------------------------------------------------------------------------------------

    def call(
        self,
        server: str,
        tool: str,
        arguments: dict[str, Any] | None = None,
        *,
        meta: dict[str, Any] | None = None,
        idempotency_key: str | None = None,
        artifact: bool = False,
    ) -> AsyncGenerator[Event, None]:
        """Call a tool and yield its events, from `queued` to the terminal one.

        Leaving the loop early does not stop the job: `cancel` does, and closing the session.

        Args:
            idempotency_key: Names this call in the session: called again with the same key, server, tool and
                arguments it is the same job. So it is sent again when its connection died before the answer.
            artifact: Keep all output as artifacts, whatever its size, and leave it out of the events.

        Raises:
            Refused: if the call was not accepted.
            ConnectionLost: with `sent` if the connection died before the answer and nothing tells whether the
                call was accepted. Without a key it is not sent again then, because it might run twice.
        """
        params: dict[str, Any] = {
            "session": self.id,
            "server": server,
            "name": tool,
            "arguments": arguments or {},
        }
        if meta:
            params["_meta"] = meta
        if idempotency_key is not None:
            params["idempotencyKey"] = idempotency_key
        if artifact:
            params["artifact"] = True
        return self._read(partial(self._submit, (server, tool), params))

    async def run(
        self,
        server: str,
        tool: str,
        arguments: dict[str, Any] | None = None,
        *,
        meta: dict[str, Any] | None = None,
        idempotency_key: str | None = None,
        artifact: bool = False,
    ) -> JobResult:
        """Call a tool and return how it ended. As `call`.

        An answer that came in pieces is put together up to WHOLE_RESULT_BYTES; of a larger one `result` is a preview,
        and `artifact()` has the whole.
        """
        calling = self.call(server, tool, arguments, meta=meta, idempotency_key=idempotency_key, artifact=artifact)
        collected = Collected()
        async with aclosing(calling) as events:
            async for event in events:
                collected.take(event)
                if event.terminal:
                    return collected.result(event)
        raise AssertionError("the events of a call end with its terminal event")

    def follow(self, job: str, *, after: Position | None = None) -> AsyncGenerator[Event, None]:
        """The events of a job that was called before: all that the store has, or those after a position."""
        return self._read(partial(self._replay, job, after or Position(self.position.epoch, 0)))

    def events(self, *, after: Position | None = None) -> AsyncGenerator[Event, None]:
        """The events of all jobs of the session, from now or from after a position on. They do not end."""
        if after is None:
            return self._read(self._listen)
        return self._read(partial(self._replay, None, after))

    async def job(self, job: str) -> Job:
        """What is known of a job now."""
        return Job.from_answer(await self._ask("job/get", session=self.id, job=job))

    def artifact(self, job: str, *, stderr: bool = False) -> AbstractAsyncContextManager[Artifact]:
        """Download a job's artifact: its output, or with `stderr` what it wrote there.

        async with session.artifact(job) as artifact:
            async for piece in artifact:
                file.write(piece)

        Raises:
            Refused: if there is none (`unknown_artifact`), or none any more.
            ConnectionLost: if no gateway goes on with it within `reconnect_s`.
            Damaged: at its end, if it is not what the gateway had announced.
        """
        from client.artifact import open_artifact  # its HTTP client takes longer to import than all the rest

        path = f"/v1/sessions/{self.id}/artifacts/{job}{'/stderr' if stderr else ''}"
        return open_artifact(self._dialer.urls, self._dialer.key, path, self._reconnect_s)

    async def cancel(self, job: str) -> str:
        """Stop a job, running or not. Returns its state: `result` if it has ended already.

        A running job ends when its worker has proof that the tool stopped; its terminal event tells.
        """
        return str((await self._ask("job/cancel", session=self.id, job=job))["state"])

    # --- chat -----------------------------------------------------------------------------------------

    def chat(self, content: str, *, idempotency_key: str | None = None) -> AsyncGenerator[Event, None]:
        """Have a model answer, and yield the events of the turn and of its calls, up to the turn's terminal event.

        Args:
            idempotency_key: As for `call`. Without one a turn has a key that nobody else has.

        Raises:
            Refused: if the turn was not accepted, as `turn_in_progress`: its `data` has the `job` for `follow_turn`.
        """
        key = secrets.token_hex(16) if idempotency_key is None else idempotency_key
        return self._read(partial(self._turns.send, self.id, content, key))

    def follow_turn(self, turn: str) -> AsyncGenerator[Event, None]:
        """The events of a turn that was sent before, and of its calls: all that the store has."""
        return self._read(partial(self._turns.replay, turn, 0))

    async def approve(self, job: str) -> None:
        """Let a call run that a `step` event shows with `ask`.

        Raises:
            Refused: of type `already_decided` if it was denied, `unknown_call` if no turn asks for it.
        """
        await self._ask("chat/approve", session=self.id, job=job)

    async def deny(self, job: str) -> None:
        """Have a call not run; its model is told. Raises as `approve`."""
        await self._ask("chat/deny", session=self.id, job=job)

    # --- beside calls ---------------------------------------------------------------------------------

    async def servers(self) -> list[dict[str, Any]]:
        """The catalog: `{name, kind, description, scope, status, reason}` of each server."""
        servers: list[dict[str, Any]] = (await self._ask("servers/list"))["servers"]
        return servers

    async def tools(self, server: str) -> list[dict[str, Any]]:
        """What a server offers, as MCP's `tools/list` has it."""
        tools: list[dict[str, Any]] = (await self._ask("tools/list", server=server))["tools"]
        return tools

    async def status(self) -> dict[str, Any]:
        """`{gateway, workers, queues: [{server, waiting, running}]}`."""
        return await self._ask("status/get")

    @property
    def dead_letters(self) -> DeadLetters:
        """The jobs that the system gave up on, of all sessions of the tenant."""
        return DeadLetters(self._ask)

    async def train_dictionary(self) -> int:
        """For operators: have all conversations compressed with a new dictionary from now on. Returns its version.

        Raises:
            Refused: of type `operators_only` or `too_few_messages`.
        """
        version: int = (await self._ask("conversations/train_dictionary"))["version"]
        return version

    @property
    def conversations(self) -> Conversations:
        """For operators: the conversations of all sessions."""
        return Conversations(self._ask)

    @property
    def conversation(self) -> Conversation:
        """The messages that the session keeps."""
        return Conversation(self._ask, self.id)

    def files(self, server: str) -> Files:
        """The files directory of the session's container on a server of scope `session`."""
        return Files(self._ask, self.follow, self._dialer.urls, self._dialer.key, self.id, server)

    async def close(self) -> list[str]:
        """End the session: its jobs are cancelled, its containers freed. Returns the cancelled jobs."""
        cancelled: list[str] = (await self._ask("session/close", session=self.id))["cancelled"]
        return cancelled

    async def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        return await self._link.request(method, params, resend=True)

    # --- the way of an event --------------------------------------------------------------------------

    async def serve(self) -> None:
        """Keep the session connected until cancelled; `connect` owns this."""
        try:
            await self._link.keep()
        finally:
            self._readers.fail(self._link.failure or ConnectionLost("the session was left"))

    async def ready(self) -> None:
        """Returns when the session is open. Raises as `connect`."""
        await self._link.up()

    async def _read(self, open_reader: Callable[[], Awaitable[Reader]]) -> AsyncGenerator[Event, None]:
        reader = await open_reader()
        try:
            while True:
                if reader.needs_feed:
                    reader.feed = self._group.create_task(self._feed(reader))
                event = await reader.get()
                if reader.wants(event):
                    yield event
                if event.terminal and event.job == reader.until:
                    return
        finally:
            self._readers.remove(reader)

    async def _submit(self, tool: Tool, params: dict[str, Any]) -> Reader:
        with self._readers.awaiting(tool):
            try:
                answer = await self._link.request("tools/call", params, resend="idempotencyKey" in params)
            except ConnectionLost as lost:
                reader = await self._find(tool) if lost.sent else None
                if reader is None:
                    raise
                return reader
            # With a key it may be a job from before, whose first events have come and gone.
            passed = answer["seq"] <= self.position.seq
            start = Position(self.position.epoch, answer["seq"] - 1)
            return self._readers.claim(answer["job"], start, passed=passed)

    async def _find(self, tool: Tool) -> Reader | None:
        """A reader of the job of a call that was sent and lost its answer."""
        if not self._own:
            return None  # a new job may as well be of somebody else who joined the session
        try:
            await self._link.up()
        except ClientError:
            return None
        return await self._readers.claim_lost(tool, FIND_S)

    async def _listen(self) -> Reader:
        return self._readers.add(Reader(None, self.position))

    async def _replay(self, job: str | None, after: Position) -> Reader:
        return self._readers.add(Reader(job, after, behind=True))

    async def _feed(self, reader: Reader) -> None:
        """Read the session again for one reader, from its position on and at its pace."""

        def bridge() -> None:
            self._bridge(reader, link.position)

        link = self._new_link(reader.put, bridge, session=self.id, position=reader.position)
        await link.keep()
        if link.failure is not None:
            reader.fail(link.failure)

    async def _route(self, event: Event) -> None:
        self._readers.offer(event, self.position.epoch)

    # --- gaps -----------------------------------------------------------------------------------------

    def _bridge_all(self) -> None:
        self._readers.gaps += 1
        for reader in self._readers:
            if reader.feed is None:  # a feed sees its own gaps
                self._bridge(reader, self.position)

    def _bridge(self, reader: Reader, position: Position) -> None:
        reader.position = position  # also back, where numbers start again
        if reader.until is not None:
            self._group.create_task(self._settle(reader, reader.until))

    async def _settle(self, reader: Reader, job: str) -> None:
        """The terminal event may be among those that are gone: ask for the job instead."""
        try:
            known = await self.job(job)
        except ClientError as exc:
            return reader.fail(exc)
        if known.result is not None:
            await reader.put(known.result.as_event(self.id))
        return None
