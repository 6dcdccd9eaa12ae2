"""`python -m tests.rehearsal`: a rolling update and its way back under load, what it cost, and a line of figures.

Progress and the summary go to stderr. The last line of stdout is one JSON object, whose fields
`tests/rehearsal/verdict.py` describes. Exit code 1 unless nothing was lost and no call has failed.

DOCKER_HOST names the engine that has the images.
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

from tests.rehearsal.release import PREVIOUS, NoSuchRelease, Release, new_release, old_release
from tests.rehearsal.run import Length, Rehearsal
from tests.rehearsal.verdict import Verdict

FULL = Length(sessions=6, before_s=20, between_s=5, after_s=3)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.rehearsal", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--old", metavar="REF", help=f"the commit that is upgraded from (default: {PREVIOUS})")
    arguments = parser.parse_args()
    if not os.environ.get("DOCKER_HOST"):
        parser.error("set DOCKER_HOST to what 'scripts/engine.sh host' prints")
    return arguments


async def _rehearse(old: Release, new: Release, folder: Path) -> Verdict:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await Rehearsal(old, new, FULL, folder=folder, docker_host=os.environ["DOCKER_HOST"]).execute()


def _tell(verdict: Verdict) -> None:
    """What a person reads."""
    said = [f"violation {number}: {violation}" for number, violation in enumerate(verdict.violations, 1)]
    figures = verdict.as_dict()
    said += [
        f"{verdict.calls} calls of {verdict.sessions} sessions while {verdict.rolled} processes were exchanged",
        f"lost {verdict.lost}, failed calls {verdict.failed_calls}, doubled {verdict.doubled}",
        f"containers of sessions that went with their workers, as told: {verdict.states_lost}",
        "milliseconds, p50 and p99, before and during:",
        *(
            f"  {lane:5} {figures[f'{key}p50_ms_before']:8.1f} {figures[f'{key}p99_ms_before']:8.1f}"
            f" {figures[f'{key}p50_ms_during']:8.1f} {figures[f'{key}p99_ms_during']:8.1f}"
            for lane, key in (("quick", ""), ("kept", "kept_"))
        ),
        f"the slowest process was gone {verdict.slowest_exit_s:.1f} s after SIGTERM",
    ]
    print("\n".join(said), file=sys.stderr, flush=True)


def main() -> int:
    arguments = _arguments()
    folder = Path(tempfile.mkdtemp(prefix="rehearsal-"))
    structlog.configure(logger_factory=structlog.WriteLoggerFactory((folder / "run.log").open("w", buffering=1)))
    clean = False
    try:
        old, new = old_release(arguments.old, folder / "old"), new_release()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            verdict = runner.run(_rehearse(old, new, folder))
        clean = not verdict.violations
    except NoSuchRelease as exc:
        clean = True  # there are no logs
        print(f"rehearsal: {exc}", file=sys.stderr)
        return 2
    finally:
        shutil.rmtree(folder if clean else folder / "old", ignore_errors=not clean)
        if not clean:
            print(f"rehearsal: logs are in {folder}", file=sys.stderr, flush=True)
    _tell(verdict)
    print(json.dumps(verdict.as_dict(old=old.what, new=new.what)), flush=True)
    return 0 if clean else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
