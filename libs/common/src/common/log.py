"""Logging: structlog on stdout, pretty on a terminal, JSON otherwise, one canonical line per job."""

from __future__ import annotations

import logging
import sys
from typing import Literal

import structlog
from structlog.typing import FilteringBoundLogger, Processor

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure(level: str, log_format: Literal["auto", "json", "console"], **bound: str) -> None:
    """Set logging up for this process; `bound` (service, worker id) stands on every line."""
    pretty = log_format == "console" or (log_format == "auto" and sys.stdout.isatty())
    tail: list[Processor] = (
        [structlog.dev.ConsoleRenderer()]
        if pretty
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *tail,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(**bound)
    # Libraries log through the standard module; only what needs an eye comes out, in the same place.
    logging.basicConfig(stream=sys.stdout, level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")


def get(name: str) -> FilteringBoundLogger:
    logger: FilteringBoundLogger = structlog.get_logger(module=name)
    return logger


def job_context(*, session: str, job: str, attempt: int, traceparent: str | None) -> dict[str, object]:
    """The ids that tie a line to a job."""
    ids: dict[str, object] = {"session": session, "job": job, "attempt": attempt}
    if traceparent:
        ids["trace"] = trace_of(traceparent)
    return ids


def trace_of(traceparent: str) -> str:
    """The trace id in W3C trace context: version-traceid-spanid-flags."""
    return traceparent.split("-")[1] if traceparent.count("-") == 3 else traceparent
