"""The loop of `orchestrator chat`: a line is a message to the model, or a command."""

from __future__ import annotations

import asyncio
import shlex
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import asdict
from typing import Any, Final

from client import tables
from client.arguments import BadArgument, parse, schema_of
from client.background import background
from client.chat_terminal import DirectCallView, TurnView, note, show_history
from client.command import NOT_SUCCEEDED, REFUSED, SUCCEEDED
from client.conversation import Unreadable
from client.errors import ClientError, Refused
from client.event import Event
from client.interrupt import Interrupt, cancel_after
from client.lines import Lines
from client.printable import printable
from client.session import Session
from client.terminal import complain, console, print_json

HISTORY: Final = 20
"""Messages that are shown of a conversation."""
HELP: Final = """\
a line is a message to the model; one that begins with / is a command (with a space before the /, a message)
/servers                        what there is
/tools [SERVER]                 what it offers
/SERVER TOOL KEY=VALUE …        call a tool yourself, without the model
/history                        what was said
/quit                           leave; the session stays
Ctrl-C ends the turn that runs, at the prompt it leaves"""


class Dialogue:
    def __init__(self, session: Session, lines: Lines, *, as_json: bool) -> None:
        self._session = session
        self._lines = lines
        self._as_json = as_json
        self._asking = asyncio.Lock()
        self._code = SUCCEEDED

    async def run(self) -> int:
        """Until the input ends, or /quit. Returns the exit code of what ran last."""
        while (line := await self._lines.read("> ")) is not None:
            if not line.strip():
                continue
            if line.strip() == "/quit":
                break
            try:
                self._code = await self._take(line)
            except (Refused, BadArgument) as exc:
                complain(printable(str(exc)))
                self._code = REFUSED
        return self._code

    async def go_on(self) -> None:
        """In a session from before: show what was said, and follow the turn that is in progress, if one is."""
        messages, earlier = await self._newest_messages()
        turn = next((str(each["turn"]) for each in reversed(messages) if each.get("turn")), None)
        if turn is not None and not await self._in_progress(turn):
            turn = None
        # What a turn in progress has said so far comes with its events.
        told = [each for each in messages if each.get("turn") != turn or each["role"] == "user"] if turn else messages
        if not self._as_json:
            show_history(told, earlier)
        if turn is not None:
            answered = {str(each["job"]) for each in messages if each.get("role") == "tool"}
            self._code = await self._turn(self._session.follow_turn(turn), answered)

    # --- a line ---------------------------------------------------------------------------------------

    async def _take(self, line: str) -> int:
        if line.startswith("/"):
            return await self._command(line)
        try:
            return await self._turn(self._session.chat(line.strip()))
        except Refused as exc:
            if exc.type != "turn_in_progress" or not exc.data.get("job"):
                raise
            complain(f"{printable(exc.message)}; this is it, then say it again")
            await self._turn(self._session.follow_turn(exc.data["job"]))
            return REFUSED

    async def _command(self, line: str) -> int:
        try:
            name, *words = shlex.split(line[1:])
        except ValueError as exc:
            raise BadArgument(f"{line!r} is no command: {str(exc).lower() or '/help says what is'}") from exc
        match name, words:
            case "help", []:
                note(HELP)
            case "servers", []:
                listed = await self._session.servers()
                self._show(listed, lambda: tables.show_servers(console(), _clean(listed)))
            case "tools", []:
                for server in await self._session.servers():
                    if server["status"] == "ready":
                        await self._show_tools(server["name"])
            case "tools", [server]:
                await self._show_tools(server)
            case "history", []:
                messages, earlier = await self._newest_messages()
                self._show(messages, lambda: show_history(messages, earlier))
            case "help" | "servers" | "tools" | "history", _:
                raise BadArgument(f"/{name} takes no {' '.join(words)}; /help says what it takes")
            case server, [tool, *pairs]:
                return await self._call(server, tool, pairs)
            case _:
                raise BadArgument(f"/{name} is no command, and a call is /SERVER TOOL KEY=VALUE …; /help says more")
        return SUCCEEDED

    def _show(self, value: Any, as_text: Callable[[], None]) -> None:
        if self._as_json:
            print_json(value)
        else:
            as_text()

    async def _show_tools(self, server: str) -> None:
        listed = await self._session.tools(server)
        if not self._as_json:
            note(f"{server}:")
        self._show(listed, lambda: tables.show_tools(console(), _clean(listed)))

    async def _call(self, server: str, tool: str, pairs: list[str]) -> int:
        arguments = parse(pairs, "", await schema_of(self._session, server, tool) if pairs else {})
        view = DirectCallView(f"{server} {tool}")
        async with background() as group, aclosing(self._session.call(server, tool, arguments)) as events:
            async for event in events:
                if event.type == "queued":
                    group.create_task(cancel_after(Interrupt(), self._session, event.job))
                if self._as_json:
                    print_json(asdict(event))
                else:
                    view.show(event)
                if event.terminal:
                    return _code(event)
        raise AssertionError("the events of a call end with its terminal event")

    # --- a turn ---------------------------------------------------------------------------------------

    async def _turn(self, following: AsyncGenerator[Event, None], answered: set[str] | None = None) -> int:
        """Show a turn until its end. `answered` are calls of it that are known to be over."""
        view = TurnView(quiet=self._as_json)
        turn = ""
        async with background() as group, aclosing(following) as events:
            questions: dict[str, asyncio.Task[None]] = {}
            async for event in events:
                if not turn:
                    turn = event.job
                    group.create_task(cancel_after(Interrupt(), self._session, turn))
                if self._as_json:
                    print_json(asdict(event))
                for job in set(view.show(event)) - (answered or set()):
                    questions[job] = group.create_task(self._decide(view, job))
                if view.settled(event.job) and (question := questions.pop(event.job, None)):
                    question.cancel()  # somebody else has decided, if it is not over
                if event.terminal and event.job == turn:
                    return _code(event)
        raise AssertionError("the events of a turn end with its terminal event")

    async def _decide(self, view: TurnView, job: str) -> None:
        """Ask the user whether a call may run, and tell the gateway."""
        async with self._asking:
            try:
                if view.settled(job) or await self._is_job(job):
                    return
                approved = await self._approved(view.question(job))
                view.settle(job, approved=approved)
                await (self._session.approve(job) if approved else self._session.deny(job))
            except ClientError as exc:
                complain(printable(exc.message))

    async def _approved(self, question: str) -> bool:
        if not self._lines.edited:
            note(question)
        try:
            said = await self._lines.read(question)
        except asyncio.CancelledError:
            if self._lines.abandoned:
                note("\nthat is not asked any more: press Enter to go on")
            raise
        return said is not None and said.strip().lower() in ("y", "yes")

    async def _is_job(self, job: str) -> bool:
        try:
            await self._session.job(job)
        except Refused as exc:
            if exc.type == "unknown_job":
                return False
            raise
        return True

    async def _in_progress(self, turn: str) -> bool:
        try:
            return (await self._session.job(turn)).result is None
        except Refused as exc:
            if exc.type == "unknown_job":
                return False  # the store has dropped its events
            raise

    async def _newest_messages(self) -> tuple[list[dict[str, Any]], int]:
        """The last HISTORY messages, and how many there are before them."""
        newest: deque[dict[str, Any]] = deque(maxlen=HISTORY)
        count = 0
        async with aclosing(self._session.conversation.messages()) as messages:
            async for message in messages:
                if isinstance(message, Unreadable):
                    complain(f"a part of the conversation cannot be read: {message.reason}")
                else:
                    newest.append(message)
                    count += 1
        return list(newest), count - len(newest)


def _code(end: Event) -> int:
    return SUCCEEDED if end.data["outcome"] == "succeeded" else NOT_SUCCEEDED


def _clean(value: Any) -> Any:
    """What a server tells of itself, made printable."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [_clean(each) for each in value]
    return {_clean(name): _clean(each) for name, each in value.items()} if isinstance(value, dict) else value
