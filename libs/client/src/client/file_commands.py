"""`orchestrator files`: bring files to a session's container, take them home, list them."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Final

import typer

from client import saving, tables
from client.arguments import BadArgument
from client.command import SUCCEEDED, connected, run, show
from client.options import AsJson, Force, Key, Save, ServerName, SessionId, Url
from client.session import DEFAULT_KEY, DEFAULT_URL
from client.terminal import console

PIECE_BYTES: Final = 256 * 1024

app = typer.Typer(help="Files of a session's container: bring them, take them home.", no_args_is_help=True)

RemotePath = Annotated[str, typer.Argument(metavar="PATH", help="Relative to the container's files directory.")]


@app.command("put")
def put_file(
    session: SessionId,
    server: ServerName,
    file: Annotated[str, typer.Argument(metavar="FILE", help="On this machine; - is stdin.")],
    path: RemotePath,
    url: Url = DEFAULT_URL,
    key: Key = DEFAULT_KEY,
    as_json: AsJson = False,
) -> None:
    """Bring a file to the container; one that is there already is replaced."""

    async def main() -> int:
        if file != saving.STDOUT and not Path(file).is_file():
            raise BadArgument(f"{file}: no such file")
        async with connected(url, key, session) as opened:
            told = await opened.files(server).put(path, _content(file))
        show(told, as_json, lambda: print(f"{told['path']}: {told['size']} bytes"))
        return SUCCEEDED

    run(main())


@app.command("get")
def get_file(
    session: SessionId,
    server: ServerName,
    path: RemotePath,
    save: Save = saving.STDOUT,
    force: Force = False,
    url: Url = DEFAULT_URL,
    key: Key = DEFAULT_KEY,
) -> None:
    """Take a file home; to stdout unless --save names a file."""

    async def main() -> int:
        target = saving.target(save, force=force)
        async with connected(url, key, session) as opened:
            with target.writing() as file:
                async with aclosing(opened.files(server).get(path)) as pieces:
                    async for piece in pieces:
                        file.write(piece)
        return SUCCEEDED

    run(main())


@app.command("list")
def list_files(
    session: SessionId,
    server: ServerName,
    path: Annotated[str, typer.Argument(metavar="[FOLDER]")] = "",
    url: Url = DEFAULT_URL,
    key: Key = DEFAULT_KEY,
    as_json: AsJson = False,
) -> None:
    """List a folder, or all files."""

    async def main() -> int:
        async with connected(url, key, session) as opened:
            told = await opened.files(server).list(path or None)
        show(told, as_json, lambda: tables.show_files(console(), told))
        return SUCCEEDED

    run(main())


async def _content(name: str) -> AsyncGenerator[bytes, None]:
    """Piece by piece: a file of any size."""
    if name == saving.STDOUT:
        while piece := sys.stdin.buffer.read(PIECE_BYTES):
            yield piece
        return
    with Path(name).open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece
