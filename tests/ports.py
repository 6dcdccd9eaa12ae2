"""Ports that a test hands out before anybody listens on them."""

from __future__ import annotations

import random
import socket

LOWEST, HIGHEST = 20_000, 32_000
"""Below the range from which the kernel takes the ports of outgoing connections: a server that is down for a moment
finds its port free again."""
TRIES = 1000

_random = random.SystemRandom()
_given: set[int] = set()
"""Handed out by this process: whoever got one may not listen on it yet, or not any more for a moment."""


def free_port() -> int:
    """A loopback port that nobody listens on now, and that was not handed out before.

    Raises:
        OSError: if none was found.
    """
    for _ in range(TRIES):
        port = _random.randrange(LOWEST, HIGHEST)
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port
    raise OSError(f"no free port between {LOWEST} and {HIGHEST}")
