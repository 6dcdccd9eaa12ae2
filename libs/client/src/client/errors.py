"""Everything that can go wrong between this client and a gateway.

ClientError
├── ConnectionLost      the connection ended and did not come back, or took an unanswered call with it
│   └── Unreachable     no gateway took the connection
├── Refused             the gateway answered with an error; `type` says which (docs/protocol.md, "Errors")
├── NoAnswer            the gateway is connected, but its answer did not come in time
├── JobFailed           a job that stands for one operation did not succeed
├── ProtocolFault       what came is not the protocol
└── Damaged             what came is not what the gateway had promised

A call that fails is not an exception: its terminal event says how it ended.
"""

from __future__ import annotations

from typing import Any


class ClientError(Exception):
    """Base of all errors of this package; the message is one sentence for people."""

    def __init__(self, message: str) -> None:
        self.message = message
        super().__init__(message)


class ConnectionLost(ClientError):
    """`sent` is True if a request was on its way: the gateway may or may not have acted on it."""

    def __init__(self, message: str, *, sent: bool = False) -> None:
        self.sent = sent
        super().__init__(message)


class Unreachable(ConnectionLost):
    def __init__(self, url: str, reason: str) -> None:
        self.url = url
        self.reason = reason
        super().__init__(f"no gateway answers at {url}: {reason}")


class Refused(ClientError):
    """The gateway's own error: `code`, `type`, `message` and all facts in `data`."""

    def __init__(self, code: int, type: str, message: str, data: dict[str, Any] | None = None) -> None:
        self.code = code
        self.type = type
        self.data = data or {}
        super().__init__(message)

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later."""
        return self.data.get("retryable") is True

    @property
    def retry_after_s(self) -> float | None:
        """How long to wait before the next try, where the gateway says so."""
        value = self.data.get("retry_after_s")
        return float(value) if isinstance(value, int | float) else None

    @classmethod
    def from_problem(cls, status: int, body: Any) -> Refused:
        """From the body of a refused HTTP request, RFC 9457's, where it is one."""
        facts = dict(body) if isinstance(body, dict) else {}
        type_ = str(facts.pop("type", "about:blank"))
        said = facts.pop("detail", None) or facts.get("title") or "the gateway gave no reason"
        return cls(status, type_, f"HTTP {status}: {said}" if type_ == "about:blank" else str(said), facts)

    @classmethod
    def from_error(cls, error: dict[str, Any]) -> Refused:
        """From the `error` member of a JSON-RPC answer."""
        data = error.get("data")
        facts = data if isinstance(data, dict) else {}
        return cls(
            code=int(error.get("code", 0)),
            type=str(facts.get("type", "internal_error")),
            message=str(facts.get("message") or error.get("message") or "the gateway gave no reason"),
            data=facts,
        )


class NoAnswer(ClientError):
    def __init__(self, method: str, timeout_s: float) -> None:
        self.method = method
        self.timeout_s = timeout_s
        super().__init__(f"the gateway did not answer {method} within {timeout_s:g} s")


class JobFailed(ClientError):
    """`error` is the job's own, `{type, message, …}`; empty where it was cancelled."""

    def __init__(self, job: str, outcome: str, error: dict[str, Any]) -> None:
        self.job = job
        self.outcome = outcome
        self.error = error
        super().__init__(str(error.get("message") or f"job {job} ended {outcome}"))


class ProtocolFault(ClientError):
    pass


class Damaged(ClientError):
    pass
