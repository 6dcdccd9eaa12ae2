"""`orchestrator files`: bring files to a session's container, take them home, list them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, BinaryIO, Final

import typer

from client import saving, tables
from client.command import SUCCEEDED, connected, opened_file, run, show
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
        with opened_file(file) as source:
            async with connected(url, key, session) as opened:
                told = await opened.files(server).put(path, _pieces(source))
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


async def _pieces(source: BinaryIO) -> AsyncGenerator[bytes, None]:
    while piece := source.read(PIECE_BYTES):
        yield piece
