"""Which fault strikes when: decided before the run, by nothing but the seed and the length.

Faults of one target follow each other; those of different targets overlap as they fall. So at any time at most one
NATS node, one gateway and one worker is struck by a signal, and the system can always go on.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

QUIET_START: Final = 0.03
QUIET_END: Final = 0.93
"""Parts of the run between which faults begin: the load starts before, and each has time to pass before the end."""


class Action(StrEnum):
    KILL = "kill"
    """SIGKILL; started anew after `lasts_s`."""
    FREEZE = "freeze"
    """SIGSTOP, and SIGCONT after `lasts_s`."""
    DROP = "drop"
    """Every connection ends at once; new ones are refused for `lasts_s`."""
    DELAY = "delay"
    """Every piece of data waits a while."""
    HALF_CLOSE = "half_close"
    """One direction ends, the other stays open for `lasts_s`."""
    STALL = "stall"
    """Nothing moves, nothing ends."""
    VANISH = "vanish"
    """A client's socket is gone without a goodbye; it comes back after `lasts_s` at another gateway."""
    SLOW = "slow"
    """A client takes an event every now and then."""


class Target(StrEnum):
    WORKER = "worker"
    GATEWAY = "gateway"
    NATS = "nats"
    DOCKERD = "dockerd"
    TOOL = "tool"
    """The server process in a container."""
    CLIENT_LINK = "client_link"
    """What lies between the clients and one gateway."""
    GATEWAY_LINK = "gateway_link"
    """What lies between one gateway and NATS."""
    WORKER_LINK = "worker_link"
    """What lies between one worker and NATS."""
    CLIENT = "client"


class Kind(NamedTuple):
    """A fault without its time."""

    action: Action
    target: Target

    def __str__(self) -> str:
        return f"{self.action} {self.target}"


@dataclass(frozen=True)
class Fault:
    at_s: float
    """Since the start of the load."""
    kind: Kind
    index: int
    """Which of the targets: a number to be taken modulo how many there are."""
    lasts_s: float


@dataclass(frozen=True)
class _Rate:
    """How often a kind strikes in 600 s, and how long it lasts."""

    in_600_s: int
    shortest_s: float
    longest_s: float


LINKS: Final = (Target.CLIENT_LINK, Target.GATEWAY_LINK, Target.WORKER_LINK)
RATES: Final[dict[Kind, _Rate]] = {
    Kind(Action.KILL, Target.WORKER): _Rate(20, 0.0, 1.0),
    Kind(Action.KILL, Target.GATEWAY): _Rate(15, 0.0, 1.0),
    Kind(Action.KILL, Target.NATS): _Rate(14, 0.0, 2.0),
    Kind(Action.KILL, Target.DOCKERD): _Rate(8, 0.0, 2.0),
    Kind(Action.KILL, Target.TOOL): _Rate(18, 0.0, 0.0),
    Kind(Action.FREEZE, Target.WORKER): _Rate(14, 1.0, 8.0),
    Kind(Action.FREEZE, Target.GATEWAY): _Rate(8, 1.0, 8.0),
    Kind(Action.FREEZE, Target.NATS): _Rate(8, 1.0, 8.0),
    Kind(Action.FREEZE, Target.DOCKERD): _Rate(5, 1.0, 8.0),
    **{Kind(Action.DROP, link): _Rate(6, 0.0, 1.0) for link in LINKS},
    **{Kind(Action.DELAY, link): _Rate(4, 1.0, 5.0) for link in LINKS},
    **{Kind(Action.HALF_CLOSE, link): _Rate(4, 0.5, 3.0) for link in LINKS},
    **{Kind(Action.STALL, link): _Rate(4, 1.0, 5.0) for link in LINKS},
    Kind(Action.VANISH, Target.CLIENT): _Rate(15, 0.0, 5.0),
    Kind(Action.SLOW, Target.CLIENT): _Rate(15, 1.0, 8.0),
}
KINDS: Final = tuple(RATES)


def schedule(seed: int, seconds: float) -> list[Fault]:
    """The faults of a run, by time; the same for the same seed and length. Every kind is there at least once."""
    rng = random.Random(f"{seed}/{seconds:g}")
    begin_s, end_s = seconds * QUIET_START, seconds * QUIET_END
    faults = []
    for lane in _lanes():
        kinds = [kind for kind in lane for _ in range(math.ceil(RATES[kind].in_600_s * seconds / 600))]
        rng.shuffle(kinds)
        # Each has a share of the time of its own, so that they follow each other and the last is not crowded out.
        share_s = (end_s - begin_s) / len(kinds)
        for number, kind in enumerate(kinds):
            rate = RATES[kind]
            lasts_s = rng.uniform(rate.shortest_s, max(rate.shortest_s, min(rate.longest_s, share_s)))
            at_s = begin_s + share_s * (number + 0.5 * rng.random())
            faults.append(Fault(round(at_s, 3), kind, rng.randrange(1 << 16), round(lasts_s, 3)))
    return sorted(faults, key=lambda fault: fault.at_s)


def _lanes() -> list[list[Kind]]:
    """Kinds whose faults wait for each other: those of one target, and of a tool for its daemon."""
    lanes: dict[Target, list[Kind]] = {}
    for kind in KINDS:
        lanes.setdefault(lane(kind.target), []).append(kind)
    return list(lanes.values())


def lane(target: Target) -> Target:
    """Whose faults those of the target wait for."""
    return Target.DOCKERD if target is Target.TOOL else target
