"""Log lines, and the metrics that exist before the first job."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from prometheus_client import REGISTRY

from common import metrics
from common.log import job_context

PROGRAM = """
import logging, sys
from common import log
log.configure("info", sys.argv[1], service="worker", worker="w-1")
log.get("some.module").debug("not told")
log.get("some.module").info("job ended", outcome="succeeded")
logging.getLogger("lib").info("not told")
logging.getLogger("lib").warning("told")
"""


def lines_of(log_format: str) -> list[str]:
    ran = subprocess.run([sys.executable, "-c", PROGRAM, log_format], capture_output=True, text=True, check=True)
    assert ran.stderr == ""
    return ran.stdout.splitlines()


@pytest.mark.parametrize("log_format", ["json", "auto"])
def test_a_line_is_json_with_what_was_bound_to_the_process(log_format: str) -> None:
    """One line an event on stdout; `auto` is the same where stdout is no terminal. Libraries are heard from warning."""
    first, second = lines_of(log_format)

    told = json.loads(first)
    assert told.pop("timestamp").endswith("Z")
    assert told == {
        "event": "job ended",
        "level": "info",
        "module": "some.module",
        "outcome": "succeeded",
        "service": "worker",
        "worker": "w-1",
    }
    assert second == "WARNING lib told"


@pytest.mark.parametrize(
    ("traceparent", "trace"),
    [
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", {"trace": "0af7651916cd43dd8448eb211c80319c"}),
        ("something-else", {"trace": "something-else"}),
        ("", {}),
        (None, {}),
    ],
)
def test_a_jobs_line_has_its_ids_and_the_trace_it_came_from(traceparent: str | None, trace: dict[str, str]) -> None:
    """The trace id of W3C's header, by which a tracing system finds it."""
    assert job_context(session="s", job="j", attempt=2, traceparent=traceparent) == {
        "session": "s", "job": "j", "attempt": 2, **trace
    }  # fmt: skip


def test_every_outcome_of_a_server_is_there_at_zero() -> None:
    """A rate over `failed` exists before the first failure."""
    metrics.create_server_labels("never-used")

    assert {o: sample("never-used", o) for o in metrics.OUTCOMES} == dict.fromkeys(metrics.OUTCOMES, 0.0)
    assert sample("unheard-of", "failed") is None


def sample(server: str, outcome: str) -> float | None:
    return REGISTRY.get_sample_value("jobs_ended_total", {"server": server, "outcome": outcome})
