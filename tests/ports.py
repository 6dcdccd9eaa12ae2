"""Ports that a test hands out before anybody listens on them."""

from __future__ import annotations

import random
import socket

LOWEST, HIGHEST = 20_000, 32_000
"""Below the range from which the kernel takes the ports of outgoing connections: a server that is down for a moment
finds its port free again."""
TRIES = 1000

_random = random.SystemRandom()


def free_port() -> int:
    """A loopback port that nobody listens on now.

    Raises:
        OSError: if none was found.
    """
    for _ in range(TRIES):
        port = _random.randrange(LOWEST, HIGHEST)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port between {LOWEST} and {HIGHEST}")
