"""`python -m tests.chaos --seconds 600 --seed 1`: a fault run, its violations, and a line of figures.

Progress goes to stderr, and so do the violations. The last line of stdout is one JSON object, whose fields
`tests/chaos/verdict.py` describes. Exit code 1 if anything that must not be was found.

DOCKER_HOST names the engine that has the image; the run copies it into an engine of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import structlog
import uvloop

from tests.chaos.run import Run
from tests.chaos.schedule import KINDS, schedule
from tests.chaos.verdict import Verdict


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--durability", choices=["process", "power"], default="process")
    parser.add_argument(
        "--only",
        action="append",
        choices=["none", *map(str, KINDS)],
        help="of the schedule only the faults of this kind; may be given several times",
    )
    arguments = parser.parse_args()
    if arguments.seconds <= 0:
        parser.error("--seconds must be above 0")
    if not os.environ.get("DOCKER_HOST"):
        parser.error("set DOCKER_HOST to what 'scripts/engine.sh host' prints")
    return arguments


async def _run(arguments: argparse.Namespace, folder: Path) -> Verdict:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    faults = schedule(arguments.seed, arguments.seconds)
    run = Run(
        arguments.seconds,
        arguments.seed,
        [fault for fault in faults if not arguments.only or str(fault.kind) in arguments.only],
        durability=arguments.durability,
        folder=folder,
        docker_host=os.environ["DOCKER_HOST"],
    )
    return await run.execute()


def main() -> int:
    arguments = _arguments()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    # The bus of the run's own logs as services do; a person follows the run, and the last line is for a program.
    structlog.configure(logger_factory=structlog.WriteLoggerFactory((folder / "run.log").open("w", buffering=1)))
    clean = False
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            verdict = runner.run(_run(arguments, folder))
        clean = not verdict.violations
    finally:
        if clean:
            shutil.rmtree(folder)
        else:
            print(f"chaos: logs are in {folder}", file=sys.stderr, flush=True)
    for number, violation in enumerate(verdict.violations, 1):
        print(f"\nviolation {number}: {violation}", file=sys.stderr)
    for slow in verdict.slow:
        print(f"\nslow recovery: {slow}", file=sys.stderr)
    sys.stderr.flush()
    figures = verdict.as_dict(arguments.seed, durability=arguments.durability, seconds=arguments.seconds)
    print(json.dumps(figures), flush=True)
    return 0 if clean else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
