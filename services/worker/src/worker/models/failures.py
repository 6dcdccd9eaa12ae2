"""What a provider's failure is to a chat turn, told in short and without the key. No I/O, no SDK."""

from __future__ import annotations

from dataclasses import dataclass, field

from common.job_errors import JobError
from common.schema import nearest
from worker.models.errors import ModelInterrupted, ModelRefused, ModelUnavailable

MAX_CHARACTERS = 300
"""Of a provider's own words."""
SECRET_CHARACTERS = 8
"""A shorter key is none: servers without keys are given words such as EMPTY, and speak of them."""

_LATER = {408, 409, 425, 429}
"""Beside 5xx, what another time may be answered otherwise. The SDKs try most of them again themselves."""
_KEY_REFUSED = 401


@dataclass(frozen=True)
class Failures:
    """Of one model."""

    model: str
    key: str = field(repr=False)
    silence_s: float
    """How long the provider may say nothing."""

    def of_status(self, status: int, body: object) -> JobError:
        """What an answer with a status other than 200 means."""
        if status == _KEY_REFUSED:
            # The provider's words quote the beginning and the end of the key.
            return ModelRefused(self.model, f"it does not accept the key (HTTP {status})", status)
        words = self._short(_words(body))
        why = f"HTTP {status}: {words}" if words else f"HTTP {status}"
        kind = ModelUnavailable if status >= 500 or status in _LATER else ModelRefused
        return kind(self.model, why, status)

    def of_silence(self, exc: Exception) -> ModelUnavailable:
        """No connection or no answer within its time."""
        kind = type(exc.__cause__ or exc).__name__
        return ModelUnavailable(self.model, f"no answer in time ({kind}; it may take {self.silence_s:g} s)")

    def of_connection(self, exc: Exception) -> ModelUnavailable:
        """No connection, or one that was cut before the answer began."""
        return ModelUnavailable(self.model, self._reason(exc))

    def of_request(self, exc: Exception) -> ModelRefused:
        """The SDK did not send it."""
        return ModelRefused(self.model, self._reason(exc))

    def broken(self, exc: Exception) -> ModelInterrupted:
        """The stream ended with an error of the connection, or cannot be read."""
        return ModelInterrupted(self.model, self._reason(exc))

    def told_broken(self, body: object) -> ModelInterrupted:
        """The provider told of an error in the middle of its answer."""
        return ModelInterrupted(self.model, self._short(_words(body)) or "the provider tells of an error")

    def cut_short(self) -> ModelInterrupted:
        """The stream ended as if it were whole, without the event that ends an answer."""
        return ModelInterrupted(self.model, "the stream ended before the answer did")

    def _reason(self, exc: Exception) -> str:
        """The words of what was underneath: the SDKs' own say no more than that the connection failed."""
        cause = exc.__cause__ or exc
        return self._short(str(cause)) or type(cause).__name__

    def _short(self, text: str) -> str:
        if len(self.key) >= SECRET_CHARACTERS:
            text = text.replace(self.key, "…")
        text = nearest(" ".join(text.split()))
        return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "…"


def _words(body: object) -> str:
    """The provider's own message, wherever in an error's body it stands; a page of HTML says nothing."""
    match body:
        case {"error": inner} if inner:
            return _words(inner)
        case {"message": str(text)} | {"detail": str(text)} | str(text):
            return "" if text.lstrip().startswith("<") else text
    return ""
