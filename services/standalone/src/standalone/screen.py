"""How the demo looks: on a terminal in colour, in a pipe as plain text of the same layout."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from client import Event
from client.summary import shorten, summary
from standalone.calls import Call, Seen

WIDTH: Final = 120
STYLES: Final = {"queued": "dim", "started": "cyan", "progress": "yellow", "output": "white", "result": "green"}


class Screen:
    def __init__(self) -> None:
        tty = sys.stdout.isatty()
        self._console = Console(markup=False, highlight=False, emoji=False, width=None if tty else WIDTH)

    def starting(self, folder: Path) -> None:
        self._say("starting nats-server, a gateway and a worker", style="bold")
        self._say(f"logs in {folder}", style="dim")

    def started(self, url: str, session: str, containers: int, seconds: float) -> None:
        self._say(f"ready after {seconds:.1f} s: {url}, {containers} warm containers, session {session}")

    def call(self, call: Call) -> None:
        arguments = json.dumps(call.arguments, ensure_ascii=False)
        self._say("")
        self._say(f"{call.server} {call.tool}", style="bold", tail=f"  {shorten(arguments, 90)}")
        self._say(f"  {call.about}", style="dim italic")

    def event(self, at_ms: float, event: Event) -> None:
        style = STYLES[event.type]
        if event.type == "result" and event.data.get("outcome") != "succeeded":
            style = "bold red"
        line = Text.assemble(
            (f"  #{event.seq:<5}", "dim"),
            (f"{at_ms:>8.1f} ms  ", "dim"),
            (f"{event.type:<9}", style),
            summary(event),
        )
        self._console.print(line, no_wrap=True, overflow="ellipsis")

    def summary(self, seen: Sequence[Seen]) -> None:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for column in ("SERVER", "TOOL", "OUTCOME"):
            table.add_column(column)
        for column in ("EVENTS", "QUEUE ms", "CONTAINER ms", "TOOL ms", "TOTAL ms"):
            table.add_column(column, justify="right")
        for each in seen:
            timings = each.result.timings
            numbers = [timings.get(name) for name in ("queue_ms", "container_ms", "tool_ms")]
            shown = ["-" if number is None else f"{number:.1f}" for number in numbers]
            table.add_row(
                each.call.server,
                each.call.tool,
                each.result.outcome,
                str(len(each.events)),
                *shown,
                f"{each.total_ms:.1f}",
            )
        self._say("")
        self._console.print(table)

    def stopping(self) -> None:
        self._say("")
        self._say("stopping everything", style="bold")

    def end(self, said: str, seconds: float) -> None:
        self._say(f"{said}; {seconds:.1f} s in all", style="bold green")

    def _say(self, text: str, *, style: str = "", tail: str = "") -> None:
        self._console.print(Text.assemble((text, style), tail), soft_wrap=True)
