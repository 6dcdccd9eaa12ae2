"""Options and arguments that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

from client.endpoint import endpoint
from client.event import Position


def _addresses(text: str) -> str:
    for each in text.split(","):
        try:
            endpoint(each)
        except ValueError as exc:
            raise typer.BadParameter(str(exc)) from exc
    return text


def check_position(text: str) -> str:
    try:
        return str(Position.parse(text)) if text else ""
    except ValueError as exc:
        raise typer.BadParameter(str(exc)) from exc


Url = Annotated[
    str,
    typer.Option(
        "--url", envvar="ORCHESTRATOR_URL", callback=_addresses, help="A gateway, or several separated by commas."
    ),
]
Key = Annotated[str, typer.Option("--key", envvar="ORCHESTRATOR_API_KEY", show_envvar=True, help="The API key.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Save = Annotated[str, typer.Option("--save", metavar="FILE", help="Save the output in this file; - is stdout.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the file that --save names, if there is one.")]
ServerName = Annotated[str, typer.Argument(metavar="SERVER")]
SessionId = Annotated[str, typer.Argument(metavar="SESSION")]
JobId = Annotated[str, typer.Argument(metavar="JOB")]
Allow = Annotated[
    list[str] | None,
    typer.Option(
        "--allow",
        metavar="SERVER[/TOOL]",
        help="All that may be called in the session, by anybody; repeat it for more. Without it, everything.",
    ),
]
