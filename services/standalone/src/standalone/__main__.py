"""`python -m standalone up` and `python -m standalone demo`.

Exit codes: 0 stopped as asked, 1 something failed, 2 settings or arguments cannot be used, 130 demo interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Coroutine
from typing import Any, Final

from client import ClientError
from common import log, runtime, settings
from common.errors import ServiceError
from standalone import demo
from standalone.errors import Interrupted, StandaloneError
from standalone.screen import Screen
from standalone.settings import StandaloneSettings
from standalone.stack import run_stack

EXIT_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 130


async def up(settings_: StandaloneSettings) -> None:
    """Run everything until it is cancelled."""
    async with run_stack(settings_) as stack:
        print(
            f"gateway  {stack.url}\n"
            f"NATS     {stack.nats_url}\n"
            f"logs     {settings_.state_dir}\n"
            f"try      ORCHESTRATOR_URL={stack.url} orchestrator servers\n"
            "Ctrl-C stops everything.",
            flush=True,
        )
        await asyncio.Event().wait()


async def until_signalled(work: Coroutine[Any, Any, None]) -> None:
    """Do `work`; the first SIGINT or SIGTERM cancels it, further ones do not disturb its end.

    Raises:
        Interrupted: once a cancelled `work` has ended.
    """
    task = asyncio.current_task()
    assert task is not None
    signals: list[int] = []

    def on_signal(signum: int) -> None:
        if not signals:
            task.cancel()
        signals.append(signum)

    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, on_signal, signum)
    try:
        await work
    except asyncio.CancelledError:
        if not signals:
            raise
        raise Interrupted from None


def main() -> None:
    parser = argparse.ArgumentParser(prog="standalone", description="MCP Orchestrator on one machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="run everything until Ctrl-C")
    commands.add_parser("demo", help="start everything, show what it does, check it, stop everything")
    command = parser.parse_args().command
    settings_ = settings.load(StandaloneSettings)
    # Services in processes of their own have logs of their own; what this process does is told by print.
    quiet = settings_.enable_worker_mode or command == "demo"
    log.configure("warning" if quiet else settings_.log_level, settings_.log_format, service="standalone")
    work = up(settings_) if command == "up" else demo.run(settings_, Screen())
    code = 0
    try:
        runtime.run(until_signalled(work))
    except* Interrupted:
        code = 0 if command == "up" else EXIT_INTERRUPTED
        print("stopped", file=sys.stderr)
    except* (StandaloneError, ServiceError, ClientError) as group:
        code = EXIT_FAILED
        for failure in leaves(group):
            print(f"standalone: {failure}", file=sys.stderr)
            if details := getattr(failure, "details", ""):
                print("\n".join(f"    {line}" for line in details.splitlines()), file=sys.stderr)
    raise SystemExit(code)


def leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    """The exceptions of a group and of the groups in it."""
    return [
        leaf for each in group.exceptions for leaf in (leaves(each) if isinstance(each, BaseExceptionGroup) else [each])
    ]


if __name__ == "__main__":
    main()
