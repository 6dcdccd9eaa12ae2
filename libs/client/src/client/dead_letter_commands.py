"""`orchestrator dead-letters`: look at the jobs that were given up on, run them again, remove them."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict
from typing import Annotated, Final

import typer

from client import foreground, tables
from client.arguments import BadArgument
from client.command import INTERRUPTED, NOT_SUCCEEDED, REFUSED, SUCCEEDED, connected, run, show
from client.dead_letters import Redriven
from client.errors import Refused
from client.event import Position
from client.options import AsJson, Key, Url
from client.session import DEFAULT_KEY, DEFAULT_URL
from client.terminal import complain, console

SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

app = typer.Typer(help="Jobs that were given up on: look at them, run them again, remove them.", no_args_is_help=True)

Letter = Annotated[str, typer.Argument(metavar="LETTER")]
OfServer = Annotated[str, typer.Option("--server", metavar="SERVER", help="Those of this server only.")]


@app.command("list")
def list_letters(
    server: OfServer = "",
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many, the newest.")] = 50,
    url: Url = DEFAULT_URL,
    key: Key = DEFAULT_KEY,
    as_json: AsJson = False,
) -> None:
    """List dead letters, newest first."""

    async def main() -> int:
        async with connected(url, key) as session:
            letters = await session.dead_letters.list(server=server or None, limit=limit)
        show(letters, as_json, lambda: tables.show_letters(console(), letters))
        return SUCCEEDED

    run(main())


@app.command("show")
def show_letter(letter: Letter, url: Url = DEFAULT_URL, key: Key = DEFAULT_KEY, as_json: AsJson = False) -> None:
    """Show all that is known of one: why, its attempts, the server's last words."""

    async def main() -> int:
        async with connected(url, key) as session:
            found = await session.dead_letters.show(letter)
        show(found, as_json, lambda: tables.show_letter(console(), found))
        return SUCCEEDED

    run(main())


@app.command("redrive")
def redrive_letter(
    letter: Letter,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for the job's end.")] = False,
    url: Url = DEFAULT_URL,
    key: Key = DEFAULT_KEY,
    as_json: AsJson = False,
) -> None:
    """Run a letter's job again, as a new job of its session, and follow it. Ctrl-C leaves; the job goes on."""

    async def main() -> int:
        async with connected(url, key) as session:
            redriven = await session.dead_letters.redrive(letter)
        if detach:
            show(asdict(redriven), as_json, lambda: print(f"job {redriven.job} in session {redriven.session}"))
            return SUCCEEDED
        return await _follow(url, key, redriven, as_json)

    run(main())


@app.command("purge")
def purge_letters(
    letters: Annotated[list[str] | None, typer.Argument(metavar="LETTER")] = None,
    server: OfServer = "",
    everything: Annotated[bool, typer.Option("--all", help="Those of all servers.")] = False,
    older_than: Annotated[
        str,
        typer.Option("--older-than", metavar="AGE", help="With --server or --all: spare younger ones; 30m, 6h, 2d."),
    ] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: Url = DEFAULT_URL,
    key: Key = DEFAULT_KEY,
) -> None:
    """Remove letters for good: those that are named, those of a server, or all."""
    try:
        age_s = _seconds(older_than)
        if [bool(letters), bool(server), everything].count(True) != 1:
            raise BadArgument("say which letters: their numbers, --server or --all")
        if letters and older_than:
            raise BadArgument("--older-than goes with --server or --all")
    except BadArgument as exc:
        complain(str(exc))
        raise typer.Exit(REFUSED) from None
    if not yes:
        _confirm(letters, server)  # before any loop runs, which would take Ctrl-C for its own

    async def main() -> int:
        async with connected(url, key) as session:
            if letters:
                for letter in letters:
                    await session.dead_letters.delete(letter)
                removed = len(letters)
            else:
                removed = await session.dead_letters.purge(server=server or None, all=everything, older_than_s=age_s)
        print(f"removed {removed}")
        return SUCCEEDED

    run(main())


async def _follow(url: str, key: str, redriven: Redriven, as_json: bool) -> int:
    try:
        async with connected(url, key, redriven.session) as session:
            start = Position(session.position.epoch, redriven.seq - 1)
            result = await foreground.follow(session, redriven.job, start, as_json=as_json)
    except Refused as exc:
        if exc.type != "unknown_session":
            raise
        complain(f"job {redriven.job} is in session {redriven.session} of another tenant: it cannot be followed")
        return SUCCEEDED
    return SUCCEEDED if result.succeeded else NOT_SUCCEEDED


def _confirm(letters: list[str] | None, server: str) -> None:
    """Ask on stderr; returns only when the answer is yes."""
    which = f"letter {', '.join(letters)}" if letters else f"letters of {server or 'all servers'}"
    print(f"Remove {which} for good? [y/N] ", end="", file=sys.stderr, flush=True)
    try:
        answer = sys.stdin.readline()
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    if answer.strip().lower() not in ("y", "yes"):
        complain("nothing was removed")
        raise typer.Exit(REFUSED)


def _seconds(age: str) -> float:
    """
    Raises:
        BadArgument: if it is no age.
    """
    if not age:
        return 0
    found = re.fullmatch(r"(\d{1,6})([smhd])", age)
    if found is None:
        raise BadArgument(f"--older-than: {age!r} is no age; write 30m, 6h or 2d")
    return int(found[1]) * SECONDS[found[2]]
