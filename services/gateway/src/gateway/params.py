"""What the params of each method must be (docs/protocol.md)."""

from __future__ import annotations

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
from common.errors import InvalidParams
from gateway.chat import MAX_CONTENT_CHARS
from gateway.conversation import DEFAULT_MESSAGES, MAX_CONVERSATION_TTL_S, MAX_MESSAGES
from gateway.dead_letters import DEFAULT_PAGE, MAX_PAGE
from gateway.sessions import Position


def _checked_token(value: str) -> str:
    if not subjects.TOKEN.match(value):
        raise PydanticCustomError("token", "must be 1-64 letters, digits, - or _")
    return value


def _checked_foreign(value: str) -> str:
    if value.startswith("_"):
        raise PydanticCustomError("foreign", "must not begin with _, as names of our own do")
    return value


Token = Annotated[str, AfterValidator(_checked_token)]
"""An id that comes to stand in a NATS subject."""
ForeignToken = Annotated[Token, AfterValidator(_checked_foreign)]
"""One that was not made here, and makes something here."""
LetterId = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,17}$")]
"""A number in the stream of dead letters; text, as every id is."""
ServerName = Annotated[str, StringConstraints(max_length=64)]
ToolName = Annotated[str, StringConstraints(max_length=256)]
Allowed = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}(/.{1,256})?$")]
"""`<server>` or `<server>/<tool>`."""
MAX_ALLOWED: Final = 200


class Params(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


P = TypeVar("P", bound=Params)


class NoParams(Params):
    pass


class OpenParams(Params):
    session: Token | None = None
    epoch: str | None = None
    seq: int | None = Field(default=None, ge=0)
    record: bool | None = None
    conversation_ttl_s: float | None = Field(default=None, ge=1, le=MAX_CONVERSATION_TTL_S)
    allow: list[Allowed] | None = Field(default=None, max_length=MAX_ALLOWED)

    @model_validator(mode="after")
    def _said_at_the_beginning(self) -> Self:
        said = (self.record, self.conversation_ttl_s, self.allow)
        if self.session is not None and said != (None, None, None):
            raise PydanticCustomError(
                "joined", "record, conversation_ttl_s and allow are said when a session is opened"
            )
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


class SessionParams(Params):
    session: Token


class ServerParams(Params):
    server: ServerName


class CallParams(Params):
    session: Token
    server: ServerName
    name: ToolName
    arguments: dict[str, Any] = Field(default_factory=dict)
    meta: dict[str, Any] = Field(default_factory=dict, alias="_meta")
    idempotency_key: str | None = Field(default=None, min_length=1, max_length=255, alias="idempotencyKey")
    artifact: bool = False


class ConversationParams(Params):
    session: Token
    after: int = Field(default=0, ge=0)
    limit: int = Field(default=DEFAULT_MESSAGES, ge=1, le=MAX_MESSAGES)


class ImportParams(Params):
    session: ForeignToken
    tenant: str = Field(min_length=1, max_length=255)
    messages: list[dict[str, Any]] = Field(min_length=1, max_length=MAX_MESSAGES)
    after: int = Field(ge=0)
    ttl_s: float | None = Field(default=None, ge=1, le=MAX_CONVERSATION_TTL_S)


class JobParams(Params):
    session: Token
    job: Token


class SendParams(Params):
    session: Token
    content: str = Field(min_length=1, max_length=MAX_CONTENT_CHARS)
    idempotency_key: str | None = Field(default=None, min_length=1, max_length=255, alias="idempotencyKey")


class FolderParams(Params):
    session: Token
    server: ServerName
    path: str | None = None


class FileParams(Params):
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


class LettersParams(Params):
    server: Token | None = None
    before: LetterId | None = None
    limit: int = Field(default=DEFAULT_PAGE, ge=1, le=MAX_PAGE)


class LetterParams(Params):
    letter: LetterId


class PurgeParams(Params):
    server: Token | None = None
    all: bool = False
    older_than_s: float = Field(default=0, ge=0, le=1e9)
    before: LetterId | None = None

    @model_validator(mode="after")
    def _said_which(self) -> Self:
        if self.all == (self.server is not None):
            raise PydanticCustomError("which", "say either a server, or all: true")
        return self


def validated(model: type[P], params: dict[str, Any], *, as_text: bool = False) -> P:
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
