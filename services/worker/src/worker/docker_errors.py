"""The engine's failures in the worker's words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
from aiodocker.exceptions import DockerError

from worker.errors import EngineUnavailable


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """What a call expects (no such image, already gone) it handles itself; the rest is the engine's failure.

    Raises:
        EngineUnavailable
    """
    try:
        yield
    except DockerError as exc:
        raise EngineUnavailable(f"{doing}: the container engine failed: {exc.status} {exc.message}") from exc
    except (aiohttp.ClientError, TimeoutError, OSError) as exc:
        raise EngineUnavailable(f"{doing}: the container engine does not answer ({type(exc).__name__})") from exc
