"""What all commands share: how one connects, how one ends, and how one shows what it got."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, Final

import typer

from client.arguments import BadArgument
from client.errors import ClientError, Refused, Unreachable
from client.session import Session, connect
from client.terminal import complain, print_json

SUCCEEDED: Final = 0
NOT_SUCCEEDED: Final = 1
REFUSED: Final = 2
UNREACHABLE: Final = 3
INTERRUPTED: Final = 130
PIPE_CLOSED: Final = 141
STDIN: Final = "-"


def connected(url: str, key: str, session: str | None = None) -> AbstractAsyncContextManager[Session]:
    return connect(url.split(","), key=key, session=session)


def run(command: Coroutine[Any, Any, int]) -> None:
    """Exit with the code of `command`; expected errors are one sentence on stderr."""
    try:
        code = asyncio.run(command)
    except (ClientError, BadArgument) as exc:
        hint = "; --url or ORCHESTRATOR_URL says where it is" if isinstance(exc, Unreachable) else ""
        complain(f"{exc}{hint}")
        code = REFUSED if isinstance(exc, Refused | BadArgument) else UNREACHABLE
    except BrokenPipeError:
        # Whoever read our output has left, such as `head`. Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = PIPE_CLOSED
    except KeyboardInterrupt:
        code = INTERRUPTED
    raise typer.Exit(code)


def opened_file(name: str) -> AbstractContextManager[BinaryIO]:
    """A file to read; `-` is stdin, which stays open.

    Raises:
        BadArgument: if it cannot be opened.
    """
    if name == STDIN:
        return nullcontext(sys.stdin.buffer)
    try:
        return Path(name).open("rb")
    except OSError as exc:
        raise BadArgument(f"{name}: {exc.strerror}") from exc


def show(value: Any, as_json: bool, as_table: Callable[[], None]) -> None:
    if as_json:
        print_json(value)
    else:
        as_table()
