"""`orchestrator conversation`: look at what a session has said, or have it forgotten."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import Annotated, Any

import typer

from client.command import NOT_SUCCEEDED, SUCCEEDED, connected, opened_file, run
from client.conversation import Unreadable
from client.importing import Import, import_view
from client.options import AsJson, Key, SessionId, Url
from client.printable import printable
from client.session import DEFAULT_KEY, DEFAULT_URL
from client.summary import message_text
from client.terminal import complain

app = typer.Typer(help="The messages that a session keeps.", no_args_is_help=True)
all_app = typer.Typer(help="For operators: what concerns the conversations of all sessions.", no_args_is_help=True)


@app.command("show")
def show_conversation(
    session: SessionId,
    after: Annotated[int, typer.Option("--after", min=0, help="Only messages with higher numbers.")] = 0,
    url: Url = DEFAULT_URL,
    key: Key = DEFAULT_KEY,
    as_json: AsJson = False,
) -> None:
    """Show the messages of a session, the oldest first. Exit code 1 where a part of them cannot be read."""

    async def main() -> int:
        code = SUCCEEDED
        async with (
            connected(url, key, session) as opened,
            aclosing(opened.conversation.messages(after=after)) as messages,
        ):
            async for message in messages:
                if isinstance(message, Unreadable):
                    complain(f"{message.key} at revision {message.revision} cannot be read: {message.reason}")
                    code = NOT_SUCCEEDED
                elif as_json:
                    print(json.dumps(message, ensure_ascii=False), flush=True)
                else:
                    print(printable(f"{message['number']:>6} {_who(message)}: {message_text(message)}"), flush=True)
        return code

    run(main())


@app.command("delete")
def delete_conversation(session: SessionId, url: Url = DEFAULT_URL, key: Key = DEFAULT_KEY) -> None:
    """Forget the messages of a session; the session goes on."""

    async def main() -> int:
        async with connected(url, key, session) as opened:
            await opened.conversation.delete()
        return SUCCEEDED

    run(main())


@all_app.command("train-dictionary")
def train_dictionary(url: Url = DEFAULT_URL, key: Key = DEFAULT_KEY) -> None:
    """Train a compression dictionary from the stored conversations, and use it from now on."""

    async def main() -> int:
        async with connected(url, key) as session:
            print(f"dictionary {await session.train_dictionary()} is in use")
        return SUCCEEDED

    run(main())


@all_app.command("import")
def import_conversations(
    file: Annotated[str, typer.Argument(metavar="FILE", help="JSON lines, plain or gzip'd; - is stdin.")],
    tenant: Annotated[str, typer.Option("--tenant", metavar="NAME", help="Whose the sessions are to be.")],
    ttl_s: Annotated[
        float | None,
        typer.Option("--ttl-s", min=1, help="Keep them so many seconds, whatever the file says of each."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only read the file and count.")] = False,
    url: Url = DEFAULT_URL,
    key: Key = DEFAULT_KEY,
) -> None:
    """Bring the conversations of the old system, from its Redis dump.

    Made again it goes on where it was left: what is there already is compared, and not added a second time. Exit code 1
    where a line could not be imported; the others are.
    """

    async def main() -> int:
        with opened_file(file) as source, import_view() as view:
            if dry_run:
                return await Import(None, tenant, ttl_s, view).run(source)
            async with connected(url, key) as session:
                return await Import(session.conversations, tenant, ttl_s, view).run(source)

    run(main())


def _who(message: dict[str, Any]) -> str:
    if message.get("role") != "tool":
        return str(message.get("role", "?"))
    arguments = json.dumps(message.get("arguments", {}), ensure_ascii=False)
    return f"{message.get('server')}/{message.get('tool')} {arguments} {message.get('outcome')}"
