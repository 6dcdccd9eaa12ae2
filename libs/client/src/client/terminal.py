"""A running call on the terminal: the tool's output as it comes, its progress, its answer."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from client.collected import RESULT, Attempts, Collected
from client.event import Event, JobResult
from client.summary import blocks, ending, shorten, summary

WIDTH_PIPED = 160


def console(*, stderr: bool = False) -> Console:
    """Takes text as it is: names and output of tools are nobody's markup."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else WIDTH_PIPED
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False, width=width)


def complain(sentence: str) -> None:
    print(f"orchestrator: {sentence}", file=sys.stderr)


def print_json(value: Any) -> None:
    """One line of JSON on stdout."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


class CallView:
    """Shows the events of one call; made by `call_view`.

    Output goes to the stream that the tool wrote it to, so pipes work as with a local command. On a terminal
    a line at the bottom says what goes on; it is gone when the call has ended.
    """

    def __init__(self, name: str, as_json: bool, quiet: bool) -> None:
        self._name = name
        self._as_json = as_json
        self._quiet = quiet
        self._attempts = Attempts()
        self._collected = Collected()
        self._started = False
        self._streamed = False
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[count]}", markup=False),
            TimeElapsedColumn(),
            console=console(stderr=True),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._visible = self._progress.console.is_terminal and not as_json
        self._task: TaskID = self._progress.add_task(name, total=None, count="")

    def close(self) -> None:
        """Take the line at the bottom away."""
        if self._visible:  # elsewhere rich would end a line that was never begun
            self._progress.stop()

    def show(self, event: Event) -> None:
        if self._as_json:
            print_json(asdict(event))
            return
        self._collected.take(event)
        if self._attempts.begins_anew(event) and self._streamed:
            self._streamed = False
            said = "begins anew" if event.attempt > 1 and event.type != "retrying" else "is over"
            self._tell(f"attempt {event.attempt} {said}: the output before this line is void")
        match event.type:
            case "queued":
                self._say(f"{self._name} {event.type}")
            case "started":
                self._started = True
                self._say(f"{self._name} {event.type}")
            case "progress" if event.attempt == 0:
                self._show_position(event.data)
            case "progress":
                self._show_progress(event.data)
            case "output":
                self._show_output(event)
            case "retrying" | "step" | "decision":
                self._tell(summary(event))
            case "cancelling":
                self._say(f"{self._name} {event.type}")
            case "result":
                self._show_result(self._collected.result(event))

    def _say(self, text: str, **fields: Any) -> None:
        if self._visible:
            self._progress.update(self._task, description=text, **fields)
            self._progress.start()

    def _tell(self, text: str) -> None:
        print(f"{self._name}: {text}", file=sys.stderr, flush=True)

    def _show_progress(self, data: dict[str, Any]) -> None:
        done, total = data.get("progress", 0), data.get("total")
        count = f"{done:g}/{total:g}" if total else f"{done:g}"
        said = data.get("message") or ""
        if self._visible:
            self._say(shorten(said or self._name, 40), completed=done, total=total, count=count)
        else:
            self._tell(f"{count} {said}".rstrip())

    def _show_position(self, data: dict[str, Any]) -> None:
        """How far the call has come in its queue; a report that the start has overtaken says nothing any more."""
        if self._started:
            return
        said = data.get("message") or "waiting"
        if self._visible:
            self._say(shorten(said, 40))  # no bar: that is the tool's own
        else:
            self._tell(said)

    def _show_output(self, event: Event) -> None:
        data = event.data
        if data.get("lost"):
            self._tell(f"{data['size']:,} bytes of {data['stream']} are missing here: the store has dropped them")
        elif "size" in data or data.get("stream") == RESULT:  # kept for a download, or collected until it is whole
            written = data.get("offset", 0) + (data.get("size") or len(event.output_bytes))
            self._say(f"{self._name}: {written:,} bytes")
        else:
            self.close()
            self._streamed = True
            stream = sys.stderr if data.get("stream") == "stderr" else sys.stdout
            if "text" in data:
                stream.write(data["text"])
            else:
                stream.flush()
                stream.buffer.write(event.output_bytes)
            stream.flush()

    def _show_result(self, result: JobResult) -> None:
        self.close()
        # An answer after streamed output only repeats its end, and so does one whose output is downloaded next.
        if not self._streamed and not (self._quiet and result.succeeded):
            for block in blocks(result.result):
                if block:
                    print(block, file=sys.stdout if result.succeeded else sys.stderr, flush=True)
        for name, told in result.output.items():
            if artifact := told.get("artifact"):
                self._tell(f"{name} is kept as {artifact['uri']} ({told['size']:,} bytes)")
        if not result.succeeded:
            complain(f"{self._name} {ending(result)}")


@contextmanager
def call_view(name: str, *, as_json: bool, quiet: bool = False) -> Iterator[CallView]:
    """A view of the call of `name`; with `as_json` each event is one line of JSON on stdout instead.

    With `quiet` an answer is shown only if it is an error.
    """
    view = CallView(name, as_json, quiet)
    try:
        yield view
    finally:
        view.close()
