"""`python -m worker`: settings from the environment, then `app.run()` until SIGTERM."""

from __future__ import annotations

import asyncio
from typing import Final

from common import lifecycle, log, runtime, settings, tracing
from common.errors import BrokenError
from worker import app
from worker.settings import WorkerSettings

EXIT_CANNOT_WORK: Final = 3
LEAVING_S: Final = 30.0
"""After the drain, for containers to be removed and NATS to be left: what hangs longer is cut off."""


async def serve(settings_: WorkerSettings, stop: asyncio.Event) -> None:
    """Run a worker until `stop` is set. Returns when it has drained."""
    await app.run(settings_, stop)


async def main(settings_: WorkerSettings) -> None:
    await serve(settings_, lifecycle.stop_on_signals(settings_.drain_timeout_s + LEAVING_S))


if __name__ == "__main__":
    worker_settings = settings.load(WorkerSettings)
    log.configure(worker_settings.log_level, worker_settings.log_format, service="worker")
    try:
        with tracing.exporting("worker"):
            runtime.run(main(worker_settings), worker_settings)
    except* BrokenError as group:
        for fault in group.exceptions:
            log.get(__name__).error("worker cannot work", reason=str(fault))
        raise SystemExit(EXIT_CANNOT_WORK) from None
