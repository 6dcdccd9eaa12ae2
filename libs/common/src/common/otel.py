"""OpenTelemetry's SDK as a `Tracer`. The only module that imports it; `common.tracing` does, where it is wanted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from common.tracing import Attributes, Kind, Span, Tracer

_W3C: Final = TraceContextTextMapPropagator()
_KINDS: Final = {kind.name.lower(): kind for kind in trace.SpanKind}


class _Span:
    def __init__(self, made: trace.Span) -> None:
        self._made = made
        context = made.get_span_context()
        self.traceparent: str | None = (
            f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}" if context.is_valid else None
        )

    def __enter__(self) -> Span:
        self._token = otel_context.attach(trace.set_span_in_context(self._made))
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        otel_context.detach(self._token)
        if exc is not None:
            self.fail(str(getattr(exc, "type", type(exc).__name__)))
        self.end()

    def set(self, attributes: Attributes) -> None:
        self._made.set_attributes(attributes)

    def event(self, name: str, attributes: Attributes) -> None:
        self._made.add_event(name, attributes)

    def fail(self, error_type: str) -> None:
        self._made.set_attribute("error.type", error_type)
        self._made.set_status(trace.Status(trace.StatusCode.ERROR))

    def end(self) -> None:
        self._made.end()


class _OtelTracer:
    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("mcp-orchestrator")

    def span(self, name: str, kind: Kind, parent: str | None, attributes: Attributes) -> Span:
        around = trace.get_current_span().get_span_context()
        context: Context | None = None
        links: list[trace.Link] = []
        if parent:
            extracted = _W3C.extract({"traceparent": parent}, Context())
            if trace.get_current_span(extracted).get_span_context().trace_id != around.trace_id:
                context = extracted
                links = [trace.Link(around)] if around.is_valid else []
        return _Span(self._tracer.start_span(name, context, _KINDS[kind], attributes, links))


@contextmanager
def open_tracer(service: str) -> Iterator[Tracer]:
    """A tracer that sends in batches, from a thread of its own; what is left is sent when the context closes."""
    named = {"service.name": service, **OTELResourceDetector().detect().attributes}
    provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    try:
        yield _OtelTracer(provider)
    finally:
        provider.shutdown()
