"""The methods of the protocol (docs/protocol.md): their params, and what each does. Both doors call these."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final, Self, TypeVar

from pydantic import (
    AfterValidator,
    Base64Bytes,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from common import subjects
from common.errors import InvalidParams, UnknownMethod
from gateway.catalog_view import CatalogView
from gateway.conversation import DEFAULT_MESSAGES, MAX_CONVERSATION_TTL_S, MAX_MESSAGES, Conversation
from gateway.dead_letters import DEFAULT_PAGE, MAX_PAGE, DeadLetters
from gateway.files import Files
from gateway.jobs import Jobs
from gateway.sessions import Position, Sessions
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


def _token(value: str) -> str:
    if not subjects.TOKEN.match(value):
        raise PydanticCustomError("token", "must be 1-64 letters, digits, - or _")
    return value


Token = Annotated[str, AfterValidator(_token)]
"""An id that comes to stand in a NATS subject."""
LetterId = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,17}$")]
"""A number in the stream of dead letters; text, as every id is."""
ServerName = Annotated[str, StringConstraints(max_length=64)]
ToolName = Annotated[str, StringConstraints(max_length=256)]


class _Params(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


P = TypeVar("P", bound=_Params)


class NoParams(_Params):
    pass


class OpenParams(_Params):
    session: Token | None = None
    epoch: str | None = None
    seq: int | None = Field(default=None, ge=0)
    record: bool | None = None
    conversation_ttl_s: float | None = Field(default=None, ge=1, le=MAX_CONVERSATION_TTL_S)

    @model_validator(mode="after")
    def _said_at_the_beginning(self) -> Self:
        if self.session is not None and (self.record is not None or self.conversation_ttl_s is not None):
            raise PydanticCustomError("joined", "record and conversation_ttl_s are said when a session is opened")
        return self

    @model_validator(mode="after")
    def _position_of_a_session(self) -> Self:
        if (self.epoch is None) != (self.seq is None):
            raise PydanticCustomError("position", "epoch and seq come together")
        if self.epoch is not None and self.session is None:
            raise PydanticCustomError("position", "epoch and seq need the session that they are of")
        return self

    @property
    def position(self) -> Position | None:
        return None if self.epoch is None or self.seq is None else Position(self.epoch, self.seq)


class SessionParams(_Params):
    session: Token


class ServerParams(_Params):
    server: ServerName


class CallParams(_Params):
    session: Token
    server: ServerName
    name: ToolName
    arguments: dict[str, Any] = Field(default_factory=dict)
    meta: dict[str, Any] = Field(default_factory=dict, alias="_meta")
    idempotency_key: str | None = Field(default=None, min_length=1, max_length=255, alias="idempotencyKey")
    artifact: bool = False


class ConversationParams(_Params):
    session: Token
    after: int = Field(default=0, ge=0)
    limit: int = Field(default=DEFAULT_MESSAGES, ge=1, le=MAX_MESSAGES)


class JobParams(_Params):
    session: Token
    job: Token


class FolderParams(_Params):
    session: Token
    server: ServerName
    path: str | None = None


class FileParams(_Params):
    session: Token
    server: ServerName
    path: str


class GetFileParams(FileParams):
    artifact: bool = False


class PutFileParams(FileParams):
    text: str | None = None
    data: Base64Bytes | None = None

    @model_validator(mode="after")
    def _one_content(self) -> Self:
        if (self.text is None) == (self.data is None):
            raise PydanticCustomError("content", "give the content as text, or as data (base64)")
        return self


class LettersParams(_Params):
    server: Token | None = None
    before: LetterId | None = None
    limit: int = Field(default=DEFAULT_PAGE, ge=1, le=MAX_PAGE)


class LetterParams(_Params):
    letter: LetterId


class PurgeParams(_Params):
    server: Token | None = None
    all: bool = False
    older_than_s: float = Field(default=0, ge=0, le=1e9)
    before: LetterId | None = None

    @model_validator(mode="after")
    def _said_which(self) -> Self:
        if self.all == (self.server is not None):
            raise PydanticCustomError("which", "say either a server, or all: true")
        return self


class Methods:
    """Every method of `METHODS`; `call()` is the way in."""

    def __init__(
        self,
        sessions: Sessions,
        conversation: Conversation,
        jobs: Jobs,
        files: Files,
        letters: DeadLetters,
        catalog: CatalogView,
        status: Status,
    ) -> None:
        self._sessions = sessions
        self._conversation = conversation
        self._jobs = jobs
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
        return await handler(self, caller, validated(model, params, as_text=as_text))

    async def _open_session(self, caller: Caller, params: OpenParams) -> Result:
        if params.session is None:
            joined = await self._sessions.open(
                caller.tenant, record=params.record or False, conversation_ttl_s=params.conversation_ttl_s
            )
        else:
            joined = await self._sessions.join(caller.tenant, params.session, params.position)
        return joined.as_dict()

    async def _close_session(self, caller: Caller, params: SessionParams) -> Result:
        await self._sessions.require(caller.tenant, params.session)
        cancelled = await self._jobs.cancel_all(params.session)
        # Last, so that a close which failed half-way can be asked for again.
        await self._sessions.close(caller.tenant, params.session)
        return {"session": params.session, "cancelled": cancelled}

    async def _list_servers(self, caller: Caller, params: NoParams) -> Result:
        return {"servers": [self._catalog.summary(name) for name in self._catalog.names()]}

    async def _list_tools(self, caller: Caller, params: ServerParams) -> Result:
        tools = self._catalog.tools(params.server)
        return {"server": params.server, "tools": tools.listed, "serverInfo": tools.server_info}

    async def _call_tool(self, caller: Caller, params: CallParams) -> Result:
        session = await self._sessions.require(caller.tenant, params.session)
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
            # MCP's place for it, which is the only one that a WebSocket has.
            traceparent=traceparent(params.meta.get("traceparent")) or caller.traceparent,
        )

    async def _get_conversation(self, caller: Caller, params: ConversationParams) -> Result:
        await self._sessions.require(caller.tenant, params.session)
        return await self._conversation.get(params.session, after=params.after, limit=params.limit)

    async def _delete_conversation(self, caller: Caller, params: SessionParams) -> Result:
        await self._sessions.require(caller.tenant, params.session)
        return await self._conversation.delete(params.session)

    async def _train_dictionary(self, caller: Caller, params: NoParams) -> Result:
        return await self._conversation.train_dictionary(caller.tenant)

    async def _get_job(self, caller: Caller, params: JobParams) -> Result:
        await self._sessions.require(caller.tenant, params.session)
        return await self._jobs.get(params.session, params.job)

    async def _cancel_job(self, caller: Caller, params: JobParams) -> Result:
        await self._sessions.require(caller.tenant, params.session)
        return await self._jobs.cancel(params.session, params.job)

    async def _put_file(self, caller: Caller, params: PutFileParams) -> Result:
        await self._sessions.require(caller.tenant, params.session)
        whole = params.text.encode("utf-8", "replace") if params.text is not None else params.data or b""
        return await self._files.put(caller.tenant, params.session, params.server, params.path, _pieces(whole))

    async def _get_file(self, caller: Caller, params: GetFileParams) -> Result:
        await self._sessions.require(caller.tenant, params.session)
        where = (params.session, params.server, params.path)
        return await self._files.get(caller.tenant, *where, artifact=params.artifact)

    async def _list_files(self, caller: Caller, params: FolderParams) -> Result:
        await self._sessions.require(caller.tenant, params.session)
        return await self._files.list(caller.tenant, params.session, params.server, params.path)

    async def _list_letters(self, caller: Caller, params: LettersParams) -> Result:
        return await self._letters.list(caller.tenant, server=params.server, before=params.before, limit=params.limit)

    async def _show_letter(self, caller: Caller, params: LetterParams) -> Result:
        return await self._letters.show(caller.tenant, params.letter)

    async def _redrive_letter(self, caller: Caller, params: LetterParams) -> Result:
        return await self._letters.redrive(caller.tenant, params.letter)

    async def _delete_letter(self, caller: Caller, params: LetterParams) -> Result:
        return await self._letters.delete(caller.tenant, params.letter)

    async def _purge_letters(self, caller: Caller, params: PurgeParams) -> Result:
        return await self._letters.purge(
            caller.tenant, server=params.server, older_than_s=params.older_than_s, before=params.before
        )

    async def _get_status(self, caller: Caller, params: NoParams) -> Result:
        return await self._status.get()


METHODS: Final[dict[str, tuple[type[_Params], Callable[[Methods, Caller, Any], Awaitable[Result]]]]] = {
    "session/open": (OpenParams, Methods._open_session),
    "session/close": (SessionParams, Methods._close_session),
    "servers/list": (NoParams, Methods._list_servers),
    "tools/list": (ServerParams, Methods._list_tools),
    "tools/call": (CallParams, Methods._call_tool),
    "conversation/get": (ConversationParams, Methods._get_conversation),
    "conversation/delete": (SessionParams, Methods._delete_conversation),
    "conversations/train_dictionary": (NoParams, Methods._train_dictionary),
    "job/get": (JobParams, Methods._get_job),
    "job/cancel": (JobParams, Methods._cancel_job),
    "files/put": (PutFileParams, Methods._put_file),
    "files/get": (GetFileParams, Methods._get_file),
    "files/list": (FolderParams, Methods._list_files),
    "dead_letters/list": (LettersParams, Methods._list_letters),
    "dead_letters/show": (LetterParams, Methods._show_letter),
    "dead_letters/redrive": (LetterParams, Methods._redrive_letter),
    "dead_letters/delete": (LetterParams, Methods._delete_letter),
    "dead_letters/purge": (PurgeParams, Methods._purge_letters),
    "status/get": (NoParams, Methods._get_status),
}
"""Each method: what its params must be, and what it does."""


def validated(model: type[P], params: Params, *, as_text: bool = False) -> P:
    """
    Raises:
        InvalidParams: naming every fault.
    """
    try:
        return model.model_validate(params, strict=not as_text)
    except ValidationError as exc:
        problems = [{"path": _path(e["loc"]), "message": e["msg"]} for e in exc.errors(include_url=False)]
        raise InvalidParams("invalid params", problems) from exc


def _path(location: tuple[int | str, ...]) -> str:
    return "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part[:100]}" for part in location)


async def _pieces(whole: bytes) -> AsyncGenerator[bytes]:
    yield whole
