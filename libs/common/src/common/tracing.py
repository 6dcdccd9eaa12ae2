"""Spans of OpenTelemetry, where the environment names a collector; else the trace context is only passed on.

`OTEL_EXPORTER_OTLP_ENDPOINT` turns it on, OpenTelemetry's other variables do the rest (docs/tracing.md). Without it
nothing of OpenTelemetry is imported, and a span costs one small object.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Final, Literal, Protocol

from common.log import get

_log = get(__name__)

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

Kind = Literal["server", "client", "producer", "consumer", "internal"]
Attributes = Mapping[str, str | int | bool]


class Span(AbstractContextManager["Span"], Protocol):
    """One step of a trace. As a context it is the parent of the spans within, ends with it, and has its failure."""

    @property
    def traceparent(self) -> str | None:
        """What a next process continues the trace from: W3C trace context."""

    def set(self, attributes: Attributes) -> None:
        """Say more of it."""

    def event(self, name: str, attributes: Attributes) -> None:
        """Say what happened in it, and when."""

    def fail(self, error_type: str) -> None:
        """It went wrong. Types only: messages may quote arguments."""

    def end(self) -> None:
        """For a span that is no context."""


class Tracer(Protocol):
    """Where spans are made."""

    def span(self, name: str, kind: Kind, parent: str | None, attributes: Attributes) -> Span: ...


class _Untraced:
    """A step that nobody is told of: the next one continues from where this one was to."""

    __slots__ = ("traceparent",)

    def __init__(self, traceparent: str | None) -> None:
        self.traceparent = traceparent

    def __enter__(self) -> Span:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        return None

    def set(self, attributes: Attributes) -> None:
        return None

    def event(self, name: str, attributes: Attributes) -> None:
        return None

    def fail(self, error_type: str) -> None:
        return None

    def end(self) -> None:
        return None


class _NoTracer:
    def span(self, name: str, kind: Kind, parent: str | None, attributes: Attributes) -> Span:
        return _Untraced(parent)


_tracer: Tracer = _NoTracer()


def span(name: str, kind: Kind, parent: str | None, attributes: Attributes) -> Span:
    """Begin a step.

    It continues the span around it. `parent`, a `traceparent`, counts where there is none, and where it is of another
    trace, which then links to the span around it.
    """
    return _tracer.span(name, kind, parent, attributes)


@contextmanager
def exporting(service: str) -> Iterator[None]:
    """Send spans while the context is open, if the environment says where to. Around the event loop, not in it: the
    last ones are sent when it closes, for as long as `OTEL_EXPORTER_OTLP_TIMEOUT` says."""
    global _tracer
    if not any(os.environ.get(name) for name in ENDPOINTS):
        yield
        return
    try:
        from common.otel import open_tracer
    except ImportError as exc:
        _log.warning("no traces: install the extra `otel`", reason=str(exc))
        yield
        return
    untraced = _tracer
    with open_tracer(service) as _tracer:
        try:
            yield
        finally:
            _tracer = untraced
