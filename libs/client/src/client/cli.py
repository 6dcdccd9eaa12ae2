"""`orchestrator`: the command line.

Exit codes: 0 the job succeeded, 1 it ended otherwise, 2 the command was wrong or refused, 3 no gateway
answers, 130 left by Ctrl-C, 141 nobody reads the output.
"""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import asdict
from typing import Annotated

import typer

from client import (
    chat_commands,
    conversation_commands,
    dead_letter_commands,
    file_commands,
    foreground,
    saving,
    tables,
    top_commands,
)
from client.arguments import BadArgument, parse, schema_of
from client.command import NOT_SUCCEEDED, SUCCEEDED, connected, run, show
from client.event import Position
from client.options import Allow, AsJson, Force, JobId, Key, Save, ServerName, SessionId, Url, check_position
from client.session import DEFAULT_KEY, DEFAULT_URL, connect
from client.summary import summary
from client.terminal import complain, console

app = typer.Typer(
    help="Call tools and look after jobs of an MCP Orchestrator.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(chat_commands.chat)
app.command()(top_commands.top)
app.add_typer(dead_letter_commands.app, name="dead-letters")
app.add_typer(file_commands.app, name="files")
app.add_typer(conversation_commands.app, name="conversation")
app.add_typer(conversation_commands.all_app, name="conversations")


@app.command()
def call(
    server: ServerName,
    tool: Annotated[str, typer.Argument(metavar="TOOL")],
    pairs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="Arguments, in the type that the tool asks for; KEY:=JSON forces JSON."
        ),
    ] = None,
    args: Annotated[str, typer.Option("--args", metavar="JSON", help="Arguments as a JSON object.")] = "",
    session: Annotated[str, typer.Option("--session", metavar="ID", help="Call in this session.")] = "",
    idempotency_key: Annotated[
        str,
        typer.Option(
            "--idempotency-key", metavar="TEXT", help="The same key in the same session is the same job: for retries."
        ),
    ] = "",
    save: Save = "",
    force: Force = False,
    url: Url = DEFAULT_URL,
    key: Key = DEFAULT_KEY,
    as_json: AsJson = False,
) -> None:
    """Call a tool; its output streams. Ctrl-C cancels the job.

    Without --session the call gets a session of its own, which ends with it: files and containers are gone then.
    With --save the output, of any size, goes into a file instead of onto the terminal.
    """

    async def main() -> int:
        target = saving.target(save, force=force) if save else None
        if save == saving.STDOUT and as_json:
            raise BadArgument("--save - and --json would both write to stdout")
        async with connected(url, key, session or None) as opened:
            arguments = parse([], args, {})
            if pairs:
                arguments = parse(pairs, args, await schema_of(opened, server, tool))
            result = await foreground.call(
                opened,
                server,
                tool,
                arguments,
                as_json=as_json,
                idempotency_key=idempotency_key or None,
                artifact=bool(save),
            )
            if target is not None:
                if not await saving.save_output(opened, result, target):
                    return NOT_SUCCEEDED
            elif not session and saving.offered(result) and not as_json:
                complain("that ends with the call's session: --save FILE keeps the output, --session ID keeps both")
        return SUCCEEDED if result.succeeded else NOT_SUCCEEDED

    run(main())


@app.command()
def servers(url: Url = DEFAULT_URL, key: Key = DEFAULT_KEY, as_json: AsJson = False) -> None:
    """List the servers of the catalog."""

    async def main() -> int:
        async with connected(url, key) as session:
            listed = await session.servers()
        show(listed, as_json, lambda: tables.show_servers(console(), listed))
        return SUCCEEDED

    run(main())


@app.command()
def tools(server: ServerName, url: Url = DEFAULT_URL, key: Key = DEFAULT_KEY, as_json: AsJson = False) -> None:
    """List the tools of a server, with their arguments and hints."""

    async def main() -> int:
        async with connected(url, key) as session:
            listed = await session.tools(server)
        show(listed, as_json, lambda: tables.show_tools(console(), listed))
        return SUCCEEDED

    run(main())


@app.command()
def ps(url: Url = DEFAULT_URL, key: Key = DEFAULT_KEY, as_json: AsJson = False) -> None:
    """Show workers, their pools of containers, and the queues."""

    async def main() -> int:
        async with connected(url, key) as session:
            status = await session.status()
        show(status, as_json, lambda: tables.show_status(console(), status))
        return SUCCEEDED

    run(main())


@app.command("open")
def open_session(
    record: Annotated[
        bool, typer.Option("--record", help="Keep every call and its result in the session's conversation.")
    ] = False,
    allow: Allow = None,
    url: Url = DEFAULT_URL,
    key: Key = DEFAULT_KEY,
) -> None:
    """Open a session and print its id, for `call --session`."""

    async def main() -> int:
        async with connect(url.split(","), key=key, keep=True, record=record, allow=allow) as session:
            print(session.id)
        return SUCCEEDED

    run(main())


@app.command("close")
def close_session(session: SessionId, url: Url = DEFAULT_URL, key: Key = DEFAULT_KEY) -> None:
    """Close a session: its jobs are cancelled, its containers are freed."""

    async def main() -> int:
        async with connected(url, key, session) as opened:
            for job in await opened.close():
                print(f"cancelled {job}")
        return SUCCEEDED

    run(main())


@app.command()
def events(
    session: SessionId,
    after: Annotated[
        str, typer.Option("--after", metavar="EPOCH:SEQ", callback=check_position, help="Start behind this event.")
    ] = "",
    everything: Annotated[bool, typer.Option("--all", help="Start with the oldest that is stored.")] = False,
    url: Url = DEFAULT_URL,
    key: Key = DEFAULT_KEY,
    as_json: AsJson = False,
) -> None:
    """Follow the events of a session, until Ctrl-C."""

    async def main() -> int:
        async with connected(url, key, session) as opened:
            start = Position.parse(after) if after else None
            if everything:
                start = Position(opened.position.epoch, 0)
            async for event in opened.events(after=start):
                line = f"{event.seq:>8} {event.job} {event.attempt} {event.type:<8} {summary(event)}"
                show(asdict(event), as_json, lambda line=line: print(line, flush=True))  # type: ignore[misc]
        return SUCCEEDED

    run(main())


@app.command()
def job(
    session: SessionId, job: JobId, url: Url = DEFAULT_URL, key: Key = DEFAULT_KEY, as_json: AsJson = False
) -> None:
    """Show what is known of a job."""

    async def main() -> int:
        async with connected(url, key, session) as opened:
            known = await opened.job(job)
        show(asdict(known), as_json, lambda: tables.show_job(console(), known))
        return SUCCEEDED

    run(main())


@app.command()
def cancel(session: SessionId, job: JobId, url: Url = DEFAULT_URL, key: Key = DEFAULT_KEY) -> None:
    """Cancel a job, and wait until it is known how it ended."""

    async def main() -> int:
        async with connected(url, key, session) as opened:
            await opened.cancel(job)
            async with aclosing(opened.follow(job)) as events:
                async for event in events:
                    if event.terminal:
                        print(summary(event))
        return SUCCEEDED

    run(main())


@app.command()
def artifact(
    session: SessionId,
    job: JobId,
    stderr: Annotated[bool, typer.Option("--stderr", help="What the job wrote to stderr.")] = False,
    save: Save = "-",
    force: Force = False,
    url: Url = DEFAULT_URL,
    key: Key = DEFAULT_KEY,
) -> None:
    """Download what a job wrote: its output, or its stderr; to stdout unless --save names a file."""

    async def main() -> int:
        target = saving.target(save, force=force)
        async with connected(url, key, session) as opened:
            await saving.save(opened, job, target, stderr=stderr)
        return SUCCEEDED

    run(main())


def main() -> None:
    app()
