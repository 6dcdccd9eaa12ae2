"""The methods of the protocol (docs/protocol.md): their params, and what each does. Both doors call these."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from common import tracing
from common.errors import UnknownMethod
from gateway import params as given
from gateway.catalog_view import CatalogView
from gateway.chat import Chat
from gateway.conversation import Conversation
from gateway.dead_letters import DeadLetters
from gateway.files import Files
from gateway.jobs import Jobs
from gateway.sessions import Sessions
from gateway.status import Status
from gateway.trace import traceparent

Params = dict[str, Any]
Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls a method."""

    tenant: str
    traceparent: str | None = None
    """W3C trace context of the request, already validated."""


class Methods:
    """Every method of `METHODS`; `call()` is the way in."""

    def __init__(
        self,
        sessions: Sessions,
        conversation: Conversation,
        jobs: Jobs,
        chat: Chat,
        files: Files,
        letters: DeadLetters,
        catalog: CatalogView,
        status: Status,
    ) -> None:
        self._sessions = sessions
        self._conversation = conversation
        self._jobs = jobs
        self._chat = chat
        self._files = files
        self._letters = letters
        self._catalog = catalog
        self._status = status

    async def call(self, caller: Caller, method: str, params: Params, *, as_text: bool = False) -> Result:
        """With `as_text` params that are no text may come as text, as in the query of an address.

        Raises:
            UnknownMethod: if there is none of that name.
            InvalidParams: naming every fault of the params.
            ServiceError: what the method itself refuses.
        """
        found = METHODS.get(method)
        if found is None:
            raise UnknownMethod(method[:100], sorted(METHODS))
        model, handler = found
        # MCP's place for it, which is the only one that a WebSocket has.
        meta = params.get("_meta")
        parent = traceparent(meta.get("traceparent")) if isinstance(meta, dict) else None
        with tracing.span(method, "server", parent or caller.traceparent, {"mcp.method.name": method}):
            return await handler(self, caller, given.validated(model, params, as_text=as_text))

    async def _open_session(self, caller: Caller, params: given.OpenParams) -> Result:
        if params.session is None:
            joined = await self._sessions.open(
                caller.tenant,
                record=params.record or False,
                conversation_ttl_s=params.conversation_ttl_s,
                allow=None if params.allow is None else list(params.allow),
            )
        else:
            joined = await self._sessions.join(caller.tenant, params.session, params.position)
        return joined.as_dict()

    async def _close_session(self, caller: Caller, params: given.SessionParams) -> Result:
        await self._sessions.require(caller.tenant, params.session)
        cancelled = await self._jobs.cancel_all(params.session)
        # Last, so that a close which failed half-way can be asked for again.
        await self._sessions.close(caller.tenant, params.session)
        return {"session": params.session, "cancelled": cancelled}

    async def _list_servers(self, caller: Caller, params: given.NoParams) -> Result:
        return {"servers": [self._catalog.summary(name) for name in self._catalog.names()]}

    async def _list_tools(self, caller: Caller, params: given.ServerParams) -> Result:
        tools = self._catalog.tools(params.server)
        return {"server": params.server, "tools": tools.listed, "serverInfo": tools.server_info}

    async def _call_tool(self, caller: Caller, params: given.CallParams) -> Result:
        session = await self._sessions.require_allowed(caller.tenant, params.session, params.server, params.name)
        return await self._jobs.call(
            tenant=caller.tenant,
            session=params.session,
            server=params.server,
            tool=params.name,
            arguments=params.arguments,
            meta=params.meta,
            idempotency_key=params.idempotency_key,
            artifact=params.artifact,
            record=session.record,
            traceparent=traceparent(params.meta.get("traceparent")) or caller.traceparent,
        )

    async def _send(self, caller: Caller, params: given.SendParams) -> Result:
        await self._sessions.require(caller.tenant, params.session)
        return await self._chat.send(
            tenant=caller.tenant,
            session=params.session,
            content=params.content,
            traceparent=caller.traceparent,
            idempotency_key=params.idempotency_key,
        )

    async def _approve(self, caller: Caller, params: given.JobParams) -> Result:
        await self._sessions.require(caller.tenant, params.session)
        return await self._chat.decide(params.session, params.job, approved=True)

    async def _deny(self, caller: Caller, params: given.JobParams) -> Result:
        await self._sessions.require(caller.tenant, params.session)
        return await self._chat.decide(params.session, params.job, approved=False)

    async def _get_conversation(self, caller: Caller, params: given.ConversationParams) -> Result:
        await self._sessions.require(caller.tenant, params.session)
        return await self._conversation.get(params.session, after=params.after, limit=params.limit)

    async def _delete_conversation(self, caller: Caller, params: given.SessionParams) -> Result:
        await self._sessions.require(caller.tenant, params.session)
        return await self._conversation.delete(params.session)

    async def _train_dictionary(self, caller: Caller, params: given.NoParams) -> Result:
        return await self._conversation.train_dictionary(caller.tenant)

    async def _import_messages(self, caller: Caller, params: given.ImportParams) -> Result:
        self._conversation.require_operator(caller.tenant, "conversations/import")
        ttl_s = params.ttl_s
        session = await self._sessions.adopt(params.tenant, params.session, conversation_ttl_s=ttl_s)
        return await self._conversation.bring(
            params.session,
            params.messages,
            after=params.after,
            ttl_s=ttl_s or session.conversation_ttl_s,
            by=caller.tenant,
        )

    async def _get_job(self, caller: Caller, params: given.JobParams) -> Result:
        await self._sessions.require(caller.tenant, params.session)
        return await self._jobs.get(params.session, params.job)

    async def _cancel_job(self, caller: Caller, params: given.JobParams) -> Result:
        await self._sessions.require(caller.tenant, params.session)
        return await self._jobs.cancel(params.session, params.job)

    async def _put_file(self, caller: Caller, params: given.PutFileParams) -> Result:
        await self._sessions.require_allowed(caller.tenant, params.session, params.server, None)
        whole = params.text.encode("utf-8", "replace") if params.text is not None else params.data or b""
        return await self._files.put(caller.tenant, params.session, params.server, params.path, _pieces(whole))

    async def _get_file(self, caller: Caller, params: given.GetFileParams) -> Result:
        await self._sessions.require_allowed(caller.tenant, params.session, params.server, None)
        where = (params.session, params.server, params.path)
        return await self._files.get(caller.tenant, *where, artifact=params.artifact)

    async def _list_files(self, caller: Caller, params: given.FolderParams) -> Result:
        await self._sessions.require_allowed(caller.tenant, params.session, params.server, None)
        return await self._files.list(caller.tenant, params.session, params.server, params.path)

    async def _list_letters(self, caller: Caller, params: given.LettersParams) -> Result:
        return await self._letters.list(caller.tenant, server=params.server, before=params.before, limit=params.limit)

    async def _show_letter(self, caller: Caller, params: given.LetterParams) -> Result:
        return await self._letters.show(caller.tenant, params.letter)

    async def _redrive_letter(self, caller: Caller, params: given.LetterParams) -> Result:
        return await self._letters.redrive(caller.tenant, params.letter)

    async def _delete_letter(self, caller: Caller, params: given.LetterParams) -> Result:
        return await self._letters.delete(caller.tenant, params.letter)

    async def _purge_letters(self, caller: Caller, params: given.PurgeParams) -> Result:
        return await self._letters.purge(
            caller.tenant, server=params.server, older_than_s=params.older_than_s, before=params.before
        )

    async def _get_status(self, caller: Caller, params: given.NoParams) -> Result:
        return await self._status.get()


METHODS: Final[dict[str, tuple[type[given.Params], Callable[[Methods, Caller, Any], Awaitable[Result]]]]] = {
    "session/open": (given.OpenParams, Methods._open_session),
    "session/close": (given.SessionParams, Methods._close_session),
    "servers/list": (given.NoParams, Methods._list_servers),
    "tools/list": (given.ServerParams, Methods._list_tools),
    "tools/call": (given.CallParams, Methods._call_tool),
    "chat/send": (given.SendParams, Methods._send),
    "chat/approve": (given.JobParams, Methods._approve),
    "chat/deny": (given.JobParams, Methods._deny),
    "conversation/get": (given.ConversationParams, Methods._get_conversation),
    "conversation/delete": (given.SessionParams, Methods._delete_conversation),
    "conversations/train_dictionary": (given.NoParams, Methods._train_dictionary),
    "conversations/import": (given.ImportParams, Methods._import_messages),
    "job/get": (given.JobParams, Methods._get_job),
    "job/cancel": (given.JobParams, Methods._cancel_job),
    "files/put": (given.PutFileParams, Methods._put_file),
    "files/get": (given.GetFileParams, Methods._get_file),
    "files/list": (given.FolderParams, Methods._list_files),
    "dead_letters/list": (given.LettersParams, Methods._list_letters),
    "dead_letters/show": (given.LetterParams, Methods._show_letter),
    "dead_letters/redrive": (given.LetterParams, Methods._redrive_letter),
    "dead_letters/delete": (given.LetterParams, Methods._delete_letter),
    "dead_letters/purge": (given.PurgeParams, Methods._purge_letters),
    "status/get": (given.NoParams, Methods._get_status),
}
"""Each method: what its params must be, and what it does."""


async def _pieces(whole: bytes) -> AsyncGenerator[bytes]:
    yield whole
