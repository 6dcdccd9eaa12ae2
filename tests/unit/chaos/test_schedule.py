"""The schedule of the fault run: pure, seeded, complete."""

from __future__ import annotations

from itertools import groupby, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.chaos.schedule import KINDS, RATES, Action, Target, lane, schedule

seeds = st.integers(min_value=0, max_value=2**32)
lengths = st.floats(min_value=5, max_value=3600)


@settings(deadline=None)  # an hour's schedule takes a while on a busy machine
@given(seeds, lengths)
def test_a_seed_and_a_length_replay(seed: int, seconds: float) -> None:
    """A failing run can be had again."""
    assert schedule(seed, seconds) == schedule(seed, seconds)


def test_another_seed_or_length_is_another_schedule() -> None:
    """Or a second seed would prove nothing more."""
    assert len({str(schedule(seed, seconds)) for seed in range(5) for seconds in (60, 600)}) == 10


@settings(deadline=None)  # an hour's schedule takes a while on a busy machine
@given(seeds, lengths)
def test_every_kind_strikes(seed: int, seconds: float) -> None:
    """However short the run is."""
    assert {fault.kind for fault in schedule(seed, seconds)} == set(KINDS)


def test_there_is_a_kind_for_each_thing_that_may_fail() -> None:
    """Every process is killed, every process that can be held is frozen, every link is cut in four ways."""
    targets = {action: {kind.target for kind in KINDS if kind.action is action} for action in Action}
    links = {Target.CLIENT_LINK, Target.GATEWAY_LINK, Target.WORKER_LINK}
    processes = {Target.WORKER, Target.GATEWAY, Target.NATS, Target.DOCKERD}

    assert targets == {
        Action.KILL: processes | {Target.TOOL},
        Action.FREEZE: processes,
        Action.DROP: links,
        Action.DELAY: links,
        Action.HALF_CLOSE: links,
        Action.STALL: links,
        Action.VANISH: {Target.CLIENT},
        Action.SLOW: {Target.CLIENT},
    }


@settings(deadline=None)  # an hour's schedule takes a while on a busy machine
@given(seeds, lengths)
def test_there_are_sixty_kills_in_six_hundred_seconds(seed: int, seconds: float) -> None:
    """And pro rata."""
    kills = [fault for fault in schedule(seed, seconds) if fault.kind.action is Action.KILL]

    assert len(kills) >= 60 * seconds / 600


@settings(deadline=None)  # an hour's schedule takes a while on a busy machine
@given(seeds, lengths)
def test_faults_come_in_order_and_end_before_the_run(seed: int, seconds: float) -> None:
    """What comes at the very end would be healed before it could do harm."""
    faults = schedule(seed, seconds)

    assert faults == sorted(faults, key=lambda fault: fault.at_s)
    assert all(0 < fault.at_s < seconds for fault in faults)


@settings(deadline=None)  # an hour's schedule takes a while on a busy machine
@given(seeds, lengths)
def test_each_lasts_as_long_as_its_kind_does(seed: int, seconds: float) -> None:
    """Within the bounds of its rate."""
    for fault in schedule(seed, seconds):
        rate = RATES[fault.kind]

        assert round(rate.shortest_s, 3) <= fault.lasts_s <= max(rate.shortest_s, rate.longest_s)


def test_a_worker_is_frozen_for_longer_than_the_heartbeat_timeout() -> None:
    """Some times: then two workers believe that they own its jobs."""
    frozen = [fault.lasts_s for fault in schedule(1, 600) if str(fault.kind) == "freeze worker"]

    assert min(frozen) < 2 < max(frozen)


@pytest.mark.parametrize("seconds", [60, 600])
def test_the_faults_of_a_lane_have_room(seconds: float) -> None:
    """No two of them fall together, so that a late one does not push all others out of the run."""
    by_lane = sorted(schedule(1, seconds), key=lambda fault: (lane(fault.kind.target), fault.at_s))
    for _, faults in groupby(by_lane, key=lambda fault: lane(fault.kind.target)):
        times = [fault.at_s for fault in faults]

        assert all(later > earlier for earlier, later in pairwise(times))
