"""`python -m common.apply servers.yaml`: make the stored catalog say what a file says.

Exit code 0 when it does, 1 with every fault on stderr when the file cannot be used or the store refuses. NATS_URL
names the store.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common import catalog, log, registry, runtime, settings
from common.bus import connect
from common.errors import ServiceError
from common.settings import BusSettings


async def apply_file(file: Path, bus_settings: BusSettings) -> None:
    """
    Raises:
        CatalogFault: if the file cannot be used; nothing was changed.
        StreamConflict, StoreUnavailable: if the store refuses.
    """
    servers = catalog.read(file)
    async with connect(bus_settings, "catalog") as bus:
        await registry.apply(bus, servers)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m common.apply", description="Apply a catalog file.")
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    bus_settings = settings.load(BusSettings)
    log.configure(bus_settings.log_level, bus_settings.log_format, service="catalog")
    try:
        runtime.run(apply_file(options.file, bus_settings))
    except ServiceError as exc:
        print(exc.message, file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
