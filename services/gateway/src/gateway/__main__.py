"""`python -m gateway`: settings, then the service, until SIGTERM."""

from __future__ import annotations

import socket
from typing import Final

from common import lifecycle, log, runtime, tracing
from common.errors import BrokenError
from common.settings import load
from gateway.server import listen, serve
from gateway.settings import GatewaySettings

EXIT_CANNOT_LISTEN: Final = 1
EXIT_CANNOT_WORK: Final = 3
LEAVING_S: Final = 15.0
"""After the drain, for NATS to be left: what hangs longer is cut off."""


async def _serve(settings: GatewaySettings, listener: socket.socket) -> None:
    await serve(settings, lifecycle.stop_on_signals(settings.drain_timeout_s + LEAVING_S), listener)


def main() -> None:
    settings = load(GatewaySettings)
    log.configure(settings.log_level, settings.log_format, service="gateway")
    logger = log.get(__name__)
    try:
        listener = listen(settings.host, settings.port)
    except OSError as exc:
        logger.error("gateway cannot listen", host=settings.host, port=settings.port, reason=str(exc))
        raise SystemExit(EXIT_CANNOT_LISTEN) from None
    try:
        with tracing.exporting("gateway"):
            runtime.run(_serve(settings, listener), settings)
    except BrokenError as exc:
        logger.error("gateway cannot work", reason=exc.message)
        raise SystemExit(EXIT_CANNOT_WORK) from None


if __name__ == "__main__":
    main()
