"""The ledger: what was executed, written down by the tools themselves, outside the system.

Containers have no network and no mount of the host. So the engine of the run has an OCI runtime of ours: runc, behind
a script that adds the ledger's folder to what a new container mounts. The orchestrator knows nothing of it.
"""

from __future__ import annotations

import json
import shutil
import stat
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

RUNTIME = "ledger"
EXECUTIONS = "executions"
READS = "reads"

# A shell, because runc is called several times in a container's life and only `create` has to be changed.
WRAPPER = """\
#!/bin/sh
bundle=
create=
previous=
for word do
  case $previous in --bundle | -b) bundle=$word ;; esac
  case $word in create) create=1 ;; esac
  previous=$word
done
if [ -n "$create" ]; then '{python}' -I -S '{module}' "$bundle/config.json" '{folder}' || exit 1; fi
exec '{runc}' "$@"
"""


class Execution(NamedTuple):
    """One line of the ledger."""

    key: str
    tool: str
    server: str
    """The process that wrote it."""
    time_ms: int


class Ledger:
    """A folder of the host that tools append to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "ledger"
        self.runtime = folder / "ledger-runtime"
        """Program for `dockerd --add-runtime`."""
        self.folder.mkdir()
        self.folder.chmod(0o755)
        for name in (EXECUTIONS, READS):
            file = self.folder / name
            file.touch()
            file.chmod(0o666)  # tools run as uid 65534
        runc = shutil.which("runc")
        assert runc, "no runc on this machine"
        self.runtime.write_text(
            WRAPPER.format(python=sys.executable, module=Path(__file__).resolve(), folder=self.folder, runc=runc)
        )
        self.runtime.chmod(self.runtime.stat().st_mode | stat.S_IXUSR)

    def executions(self) -> list[Execution]:
        """Those of tools with an effect."""
        return _read(self.folder / EXECUTIONS)

    def reads(self) -> list[Execution]:
        return _read(self.folder / READS)


def count(executions: list[Execution]) -> Counter[str]:
    """How often each key was executed."""
    return Counter(execution.key for execution in executions)


def _read(file: Path) -> list[Execution]:
    lines = (line.split() for line in file.read_text().splitlines())
    return [Execution(key, tool, server, int(time_ms)) for key, tool, server, time_ms in lines]


def add_mount(config: Path, folder: str) -> None:
    """Add the ledger to the mounts of an OCI bundle."""
    spec = json.loads(config.read_text())
    spec["mounts"].append(
        {"destination": "/ledger", "type": "bind", "source": folder, "options": ["bind", "rw", "nosuid", "nodev"]}
    )
    config.write_text(json.dumps(spec))


if __name__ == "__main__":
    add_mount(Path(sys.argv[1]), sys.argv[2])
