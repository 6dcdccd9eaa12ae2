"""Spans with a collector and without one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from common import tracing
from tests.collector import attributes, collector

TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"
OTHER = f"00-{'a' * 32}-{'b' * 16}-01"


def test_without_a_collector_the_trace_context_is_passed_on_as_it_came() -> None:
    """A span changes nothing then, and is no error where there is no trace."""
    with tracing.span("step", "internal", TRACEPARENT, {}) as span:
        span.fail("x")
        span.event("y", {})

        assert span.traceparent == TRACEPARENT
    with tracing.span("step", "internal", None, {}) as span:
        assert span.traceparent is None


@pytest.mark.parametrize("module", ["gateway.__main__", "worker.__main__"])
def test_without_a_collector_nothing_of_opentelemetry_is_imported(module: str) -> None:
    """Neither by a service's modules, nor when it begins to run."""
    code = (
        f"import sys, {module}\nfrom common import tracing\n"
        "with tracing.exporting('x'), tracing.span('s', 'internal', None, {}): pass\n"
        "print([m for m in sys.modules if m.startswith('opentelemetry') or m == 'common.otel'])"
    )
    plain = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run([sys.executable, "-c", code], env=plain, capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_spans_continue_the_callers_trace_and_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearest step is the parent: the one around it, and the caller's where there is none."""
    with collector() as found:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
        with (
            tracing.exporting("gateway"),
            tracing.span("outer", "server", TRACEPARENT, {"a": 1}) as outer,
            tracing.span("inner", "producer", TRACEPARENT, {}) as inner,
        ):
            assert outer.traceparent is not None
            assert inner.traceparent is not None
            assert {outer.traceparent.split("-")[1], inner.traceparent.split("-")[1]} == {TRACE}

        (outer_span,), (inner_span,) = found.named("outer"), found.named("inner")
        assert found.services == {"gateway"}
        assert outer_span.trace_id.hex() == TRACE
        assert outer_span.parent_span_id.hex() == "b7ad6b7169203331"
        assert inner_span.parent_span_id == outer_span.span_id
        assert attributes(outer_span) == {"a": 1}


def test_a_parent_of_another_trace_is_continued_and_linked_to_the_span_around(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a dead letter is redriven: the job stays in its trace."""
    with collector() as found:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
        with tracing.exporting("x"), tracing.span("a", "server", TRACEPARENT, {}):
            tracing.span("b", "producer", OTHER, {}).end()

        (around,), (made,) = found.named("a"), found.named("b")
        assert (made.trace_id.hex(), made.parent_span_id.hex()) == ("a" * 32, "b" * 16)
        assert [link.span_id for link in made.links] == [around.span_id]


def test_a_failed_span_has_the_type_of_its_error_and_not_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages may quote what a client sent."""
    with collector() as found:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
        with tracing.exporting("x"), pytest.raises(ValueError, match="hush"), tracing.span("a", "internal", None, {}):
            raise ValueError("hush")

        (made,) = found.named("a")
        assert attributes(made) == {"error.type": "ValueError"}
        assert made.status.code == made.status.STATUS_CODE_ERROR
        assert not any(b"hush" in body for body in found.bodies)


def test_the_variables_of_opentelemetry_say_what_is_sampled_and_who_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    """OTEL_SERVICE_NAME is above our own name; what is not sampled is not sent, and says so to the next process."""
    with collector() as found:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
        with tracing.exporting("x"):
            tracing.span("a", "internal", None, {}).end()
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
        with tracing.exporting("x"), tracing.span("b", "internal", TRACEPARENT, {}) as unsampled:
            assert unsampled.traceparent is not None
            assert unsampled.traceparent.endswith("-00")

        assert found.services == {"mine"}
        assert [span.name for span in found.spans] == ["a"]
