"""A conversation on the terminal: what was said, the model's text as it comes, its calls as they run.

Text goes to stdout, everything about it to stderr. What models and tools have written is made printable.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from client.collected import RESULT, Attempts, Collected
from client.event import Event, JobResult
from client.printable import printable
from client.summary import blocks, called, ending, message_text, shorten
from client.terminal import complain, console

MESSAGE_CHARS: Final = 2000
"""Of a message of the history, and of the arguments that a user is asked about."""

ENDED: Final = {
    "succeeded": "ok",
    "failed": "failed",
    "denied": "denied",
    "cancelled": "cancelled",
    "timed_out": "timed out",
    "outcome_unknown": "unknown",
    "dead_lettered": "given up",
}
CUT: Final = {
    "length": "the answer was cut: it is as long as the model may answer",
    "refused": "the model's provider has refused to answer",
}


def note(text: str) -> None:
    """A line beside the conversation."""
    console(stderr=True).print(printable(text), style="dim", soft_wrap=True)


def cut(text: str, chars: int = MESSAGE_CHARS) -> str:
    """The beginning of a text; what is cut is said."""
    return text if len(text) <= chars else f"{text[:chars]}… ({len(text) - chars:,} more characters)"


@dataclass
class Call:
    """A call of the turn."""

    name: str
    text: str
    """With its arguments."""
    asks: bool
    attempts: Collected
    since_ms: int | None = None
    settled: bool = False
    """It is decided whether it runs, or over."""
    ended: bool = False


class Text:
    """Text on stdout, in pieces; knows whether its line is open."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._open = False

    def write(self, text: str) -> None:
        if text and not self._quiet:
            sys.stdout.write(printable(text))
            sys.stdout.flush()
            self._open = not text.endswith("\n")

    def end_line(self) -> None:
        if self._open:
            self.write("\n")


class TurnView:
    """Shows the events of one turn and of its calls; if `quiet` it only keeps account of them."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._text = Text(quiet=quiet)
        self._attempts = Attempts()
        self._said = ""
        """What was shown of the newest answer."""
        self._whole = False
        """A step has ended the answer that was shown."""
        self._calls: dict[str, Call] = {}

    def show(self, event: Event) -> list[str]:
        """Returns the calls that ask for leave now."""
        if call := self._calls.get(event.job):
            self._show_call(call, event)
            return []
        if self._attempts.begins_anew(event) and self._said and not self._whole:
            self._text.end_line()
            self._note("· the answer broke off here: it is void, and another attempt is made")
            self._said = ""
        match event.type:
            case "output":
                self._show_text(event)
            case "step":
                return self._show_step(event)
            case "cancelling":
                self._text.end_line()
                self._note("· the turn is being cancelled")
            case "result":
                self._show_end(JobResult.from_event(event))
        return []

    def question(self, job: str) -> str:
        self._text.end_line()
        return printable(f"allow {cut(self._calls[job].text)}? [y/N] ").replace("\n", "\\n")

    def settled(self, job: str) -> bool:
        """Needs nobody say any more whether the call may run?"""
        return job in self._calls and self._calls[job].settled

    def settle(self, job: str, *, approved: bool) -> None:
        call = self._calls[job]
        if not call.settled:
            call.settled = True
            if approved:
                self._begin(call)
            else:
                self._end(call, "denied", "", None)

    def _show_text(self, event: Event) -> None:
        text = event.output_bytes.decode(errors="replace")
        if event.data.get("lost"):
            self._text.end_line()
            self._note(f"· {event.data['size']:,} bytes of the answer are missing here: the store has dropped them")
        if self._whole:
            self._said, self._whole = "", False
        self._said += text
        self._text.write(text)

    def _show_step(self, event: Event) -> list[str]:
        self._text.end_line()
        self._whole = True
        asking = []
        for each in event.data["calls"]:
            if each["job"] in self._calls:
                continue  # told again by another attempt
            name = f"{each['server']}/{each['tool']}" if each.get("server") else called(each)
            call = self._calls[each["job"]] = Call(name, called(each), bool(each.get("ask")), Collected())
            if call.asks:
                asking.append(each["job"])
            else:
                call.settled = True
                self._begin(call)
        return asking

    def _begin(self, call: Call) -> None:
        self._text.end_line()
        self._note(f"· {shorten(call.text, MESSAGE_CHARS)}")

    def _show_call(self, call: Call, event: Event) -> None:
        call.attempts.take(event)
        match event.type:
            case "decision":
                self.settle(event.job, approved=event.data.get("approved") is True)
            case "queued":
                if not call.settled:
                    self._begin(call)
                call.since_ms = event.time_ms
            case "retrying":
                self._text.end_line()
                self._note(
                    f"· {call.name} is tried again: {shorten((event.data.get('error') or {}).get('message') or '')}"
                )
            case "result":
                result = call.attempts.result(event)
                why = (result.error or {}).get("message") or next(iter(_lines(blocks(result.result))), "")
                took_ms = None if call.since_ms is None else event.time_ms - call.since_ms
                self._end(call, result.outcome, why, took_ms)
        call.settled = True

    def _end(self, call: Call, outcome: str, why: str, took_ms: int | None) -> None:
        if call.ended:
            return
        call.ended = call.settled = True
        took = "" if took_ms is None else f" in {max(took_ms, 0) / 1000:.1f} s"
        said = f": {shorten(why)}" if why else ""
        self._text.end_line()
        self._note(f"· {call.name} {ENDED.get(outcome, outcome)}{took}{said}")

    def _show_end(self, result: JobResult) -> None:
        for call in self._calls.values():
            if not call.ended:
                self._end(call, "has not run", "", None)
        text = result.text
        self._text.write(text.removeprefix(self._said))
        self._text.end_line()
        if because := CUT.get(str(result.structured.get("ended"))):
            self._note(f"· {because}")
        if not result.succeeded and not text:
            self._complain(printable(f"the turn {ending(result)}"))
        if (result.error or {}).get("type") == "no_model":
            self._complain("commands run tools all the same: /help says how")

    def _note(self, text: str) -> None:
        if not self._quiet:
            note(text)

    def _complain(self, sentence: str) -> None:
        if not self._quiet:
            complain(sentence)


class DirectCallView:
    """Shows the events of one call that the user makes: its output as it comes, or its answer at the end."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._text = Text()
        self._attempts = Attempts()
        self._collected = Collected()
        self._streamed = False

    def show(self, event: Event) -> None:
        self._collected.take(event)
        if self._attempts.begins_anew(event) and self._streamed:
            self._streamed = False
            self._text.end_line()
            note("· the output before this line is void: another attempt is made")
        match event.type:
            case "output" if event.data.get("stream") != RESULT:
                self._streamed = True
                self._show_output(event)
            case "result":
                self._show_end(self._collected.result(event))

    def _show_output(self, event: Event) -> None:
        if "text" in event.data:
            self._text.write(str(event.data["text"]))
        else:
            size = event.data.get("size") or len(event.output_bytes)
            self._text.end_line()
            note(f"· {size:,} bytes that are no text, or are missing")

    def _show_end(self, result: JobResult) -> None:
        self._text.end_line()
        for block in [] if self._streamed else blocks(result.result):
            self._text.write(block)
            self._text.end_line()
        if not result.succeeded:
            complain(printable(f"{self._name} {ending(result)}"))


def show_history(messages: Iterable[dict[str, Any]], earlier: int) -> None:
    """Messages of a conversation, and how many before them are not shown."""
    if earlier:
        note(f"· {earlier:,} earlier messages are not shown; orchestrator conversation show has them")
    text = Text()
    for message in messages:
        said = cut(message_text(message))
        match message.get("role"):
            case "user":
                text.write(f"> {said}\n")
            case "assistant":
                text.write(said)
                text.end_line()
                for call in message.get("calls") or []:
                    note(f"· {shorten(called(call), MESSAGE_CHARS)}")
            case "tool":
                outcome = str(message.get("outcome"))
                first = next(iter(_lines([said])), "") or str((message.get("error") or {}).get("message", ""))
                name = f"{message.get('server')}/{message.get('tool')}" if message.get("server") else "the call"
                note(f"· {name} {ENDED.get(outcome, outcome)}" + (f": {shorten(first)}" if first else ""))


def _lines(texts: Iterable[str]) -> list[str]:
    return [line for text in texts for line in text.splitlines() if line.strip()]
