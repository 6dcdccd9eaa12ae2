"""Delays between tries, on a clock of the test's own."""

from __future__ import annotations

import asyncio

import pytest

from client.patience import LAST_DELAY_S, STEADY_S, Patience


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in its only item."""
    now = [1000.0]

    class Loop:
        def time(self) -> float:
            return now[0]

    monkeypatch.setattr(asyncio, "get_running_loop", Loop)
    return now


def test_delays_stay_within_the_limit_and_the_budget(clock: list[float]) -> None:
    """However often it fails, a series ends when its budget is used up."""
    patience = Patience(30.0)
    delays = []
    while (delay := patience.failed()) is not None:
        delays.append(delay)
        clock[0] += max(delay, 0.01)

    assert max(delays) <= LAST_DELAY_S
    assert 30.0 <= clock[0] - 1000.0 < 30.1


def test_a_steady_success_renews_the_budget(clock: list[float]) -> None:
    """The next loss begins a new series."""
    patience = Patience(10.0)
    assert patience.failed() is not None
    clock[0] += 9.0
    patience.succeeded()
    clock[0] += STEADY_S

    assert patience.failed() is not None


def test_a_short_success_does_not_renew_the_budget(clock: list[float]) -> None:
    """A gateway that takes every connection and drops it at once must not be tried for ever."""
    patience = Patience(10.0)
    patience.failed()
    for _ in range(10):
        clock[0] += 1.0
        patience.succeeded()
        patience.failed()

    assert patience.failed() is None
