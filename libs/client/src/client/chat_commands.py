"""`orchestrator chat`: talk to a model that calls tools."""

from __future__ import annotations

from typing import Annotated

import typer

from client.arguments import BadArgument
from client.chat_terminal import note
from client.command import run
from client.dialogue import Dialogue
from client.lines import stdin_lines
from client.options import Allow, AsJson, Key, Url
from client.session import DEFAULT_KEY, DEFAULT_URL, connect


def chat(
    session: Annotated[str, typer.Option("--session", metavar="ID", help="Go on in this session.")] = "",
    allow: Allow = None,
    url: Url = DEFAULT_URL,
    key: Key = DEFAULT_KEY,
    as_json: AsJson = False,
) -> None:
    """Talk to a model, which calls tools; /help says what else can be typed. Ctrl-C cancels the turn.

    A session that is opened stays after leaving. Piped input is taken line by line. With --json each event of a turn
    or a call is one line of JSON. The exit code is that of the last turn, call or command.
    """

    async def main() -> int:
        if session and allow:
            raise BadArgument("what a session allows is said when it is opened: --allow is for a new one")
        async with connect(url.split(","), key=key, session=session or None, keep=True, allow=allow) as opened:
            with stdin_lines() as lines:
                dialogue = Dialogue(opened, lines, as_json=as_json)
                if session:
                    await dialogue.go_on()
                else:
                    note(f"session {opened.id}; orchestrator chat --session {opened.id} comes back to it")
                return await dialogue.run()

    run(main())
