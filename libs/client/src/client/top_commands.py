"""`orchestrator top`: a live view of workers, pools, queues and sessions."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from client.arguments import BadArgument
from client.command import NOT_SUCCEEDED, SUCCEEDED, run, show
from client.options import AsJson, Key, Url
from client.session import DEFAULT_KEY, DEFAULT_URL
from client.terminal import console


def top(
    every: Annotated[
        float, typer.Option("--every", metavar="SECONDS", min=0.2, max=3600, help="Between two looks.")
    ] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one view as plain text.")] = False,
    url: Url = DEFAULT_URL,
    key: Key = DEFAULT_KEY,
    as_json: AsJson = False,
) -> None:
    """Follow workers, pools, queues and sessions on the terminal.

    q quits, p pauses, / filters, Tab goes to the next table, s sorts it by its next column, r reverses it. With several
    addresses in --url each of those gateways is shown. While none answers, the last view stays, with its age. --json
    prints one view as one object.
    """
    live = not once and not as_json

    async def main() -> int:
        # What follows takes longer to import than all the rest of the command line.
        from client.overview import overview
        from client.sections import print_sections

        if live:
            _check_terminal()
        async with overview(url.split(","), key) as view:
            await view.look()  # a wrong key or address is said here, not on a screen that hides it
            if live:
                from client.top_terminal import Top

                return SUCCEEDED if await Top(view, every).follow() else NOT_SUCCEEDED
            show(view.as_dict(), as_json, lambda: print_sections(console(), view))
        return SUCCEEDED

    run(main())


def _check_terminal() -> None:
    """
    Raises:
        BadArgument: if there is nothing to draw on, or nothing to draw with.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or console().is_dumb_terminal:
        raise BadArgument("the live view needs a terminal: --once prints one view as plain text")
    try:
        import textual  # noqa: F401
    except ImportError as exc:
        raise BadArgument(
            "the live view needs the package textual: pip install 'mcp-orchestrator-client[top]'; --once does without"
        ) from exc
