"""The tables of `orchestrator top`: their columns, their rows, how they are sorted and filtered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from rich.console import Console
from rich.table import Table

from client.overview import Overview, Row
from client.printable import printable

MIB: Final = 1024 * 1024


@dataclass(frozen=True)
class Column:
    title: str
    value: Callable[[Row], Any]
    """What is sorted by: a number, a text, or None for what is not known."""
    text: Callable[[Any], str] = str
    """How a value that is known is shown."""
    justify: Literal["left", "right"] = "left"

    def show(self, row: Row) -> str:
        value = self.value(row)
        return "" if value is None else printable(self.text(value)).replace("\n", " ")

    def sort_key(self, row: Row) -> tuple[bool, bool, Any]:
        value = self.value(row)
        return value is not None, isinstance(value, str), value if value is not None else 0


@dataclass(frozen=True)
class Section:
    name: str
    columns: tuple[Column, ...]
    rows: Callable[[Overview], list[Row]]
    empty: str
    """What is said where there is no row."""


@dataclass(frozen=True, slots=True)
class Order:
    """Which rows of a section are shown, and in which order: as they come, or by a column."""

    column: int | None = None
    descending: bool = False

    def next_column(self, count: int) -> Order:
        if self.column is None:
            return Order(0, self.descending)
        return Order(self.column + 1 if self.column + 1 < count else None, self.descending)

    def reversed(self) -> Order:
        return Order(self.column, not self.descending)


def lines(section: Section, view: Overview, order: Order = Order(), wanted: str = "") -> list[list[str]]:
    """What stands in the section: of the rows that have `wanted` in one of their cells, in that order."""
    rows = section.rows(view)
    if order.column is not None:
        rows = sorted(rows, key=section.columns[order.column].sort_key, reverse=order.descending)
    elif order.descending:
        rows = rows[::-1]
    shown = [[column.show(row) for column in section.columns] for row in rows]
    return [cells for cells in shown if any(wanted.lower() in cell.lower() for cell in cells)]


def headline(view: Overview) -> str:
    """The system in one line."""
    slots = [worker.get("slots") or {} for worker in view.workers]
    used, limit = (sum(each.get(key) or 0 for each in slots) for key in ("used", "limit"))
    waiting = sum(queue["waiting"] for queue in view.queues)
    sessions = sum(seen.gateway.get("sessions") or 0 for seen in view.gateways if seen.fault is None)
    rate = "" if view.jobs_per_s is None else f", {view.jobs_per_s:g} jobs/s"
    return f"{len(view.workers)} workers, {used}/{limit} slots, {waiting} waiting, {sessions} sessions{rate}"


def print_sections(console: Console, view: Overview) -> None:
    """Everything once, as plain text."""
    console.print(headline(view), markup=False)
    for section in SECTIONS:
        console.print()
        rows = lines(section, view)
        if not rows:
            console.print(section.empty, markup=False)
            continue
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for column in section.columns:
            table.add_column(column.title, justify=column.justify, overflow="fold")
        for cells in rows:
            table.add_row(*cells)
        console.print(table)


def _field(name: str) -> Callable[[Row], Any]:
    return lambda row: row.get(name)


def _number(title: str, value: Callable[[Row], Any], text: Callable[[Any], str] = str) -> Column:
    return Column(title, value, text, "right")


def _duration(seconds: float) -> str:
    """`3.2s`, `12m03s`, `5h07m`, `3d04h`."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest_s = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest_s:02}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}h{minutes:02}m"
    return f"{hours // 24}d{hours % 24:02}h"


def _mebibytes(count: int) -> str:
    return f"{count / MIB:.0f}M"


def _name(worker: Row) -> str:
    return str(worker.get("worker") or worker.get("id") or "?")


def _slot(key: str) -> Callable[[Row], Any]:
    return lambda worker: (worker.get("slots") or {}).get(key)


def _turns(worker: Row) -> Any:
    return (worker.get("chat") or {}).get("turns")


def _worker_state(worker: Row) -> str:
    if worker.get("draining"):
        return "draining"
    return str(worker.get("not_ready") or "ready")


def _gateways(view: Overview) -> list[Row]:
    return [{"url": seen.url, "state": seen.state, "why": seen.why} | seen.gateway for seen in view.gateways]


def _pools(view: Overview) -> list[Row]:
    return [pool | {"worker": _name(worker)} for worker in view.workers for pool in worker.get("pools") or []]


SECTIONS: Final = (
    Section(
        "workers",
        (
            Column("WORKER", _name),
            Column("HOST", _field("host")),
            Column("VERSION", _field("version")),
            _number("USED", _slot("used")),
            _number("SLOTS", _slot("limit")),
            _number("TURNS", _turns),
            _number("ENDED", _field("jobs_ended")),
            _number("MEMORY", _field("memory_bytes"), _mebibytes),
            _number("UP", _field("uptime_s"), _duration),
            Column("STATE", _worker_state),
        ),
        lambda view: view.workers,
        "no worker answers: jobs wait until one comes",
    ),
    Section(
        "pools",
        (
            Column("POOL", _field("server")),
            Column("WORKER", _field("worker")),
            Column("SCOPE", _field("scope")),
            _number("READY", _field("ready")),
            _number("BUSY", _field("busy")),
            _number("STARTING", _field("starting")),
            _number("LIMIT", _field("limit")),
            _number("LEASES", _field("leases")),
            Column("FAILURE", _field("failure")),
        ),
        _pools,
        "no pools",
    ),
    Section(
        "queues",
        (
            Column("QUEUE", _field("server")),
            _number("WAITING", _field("waiting")),
            _number("RUNNING", _field("running")),
            _number("OLDEST", _field("oldest_s"), _duration),
        ),
        lambda view: view.queues,
        "no queues",
    ),
    Section(
        "gateways",
        (
            Column("GATEWAY", _field("url")),
            Column("HOST", _field("host")),
            _number("CONNECTIONS", _field("connections")),
            _number("SESSIONS", _field("sessions")),
            _number("UP", _field("uptime_s"), _duration),
            Column("STATE", _field("state")),
            Column("WHY", _field("why")),
        ),
        _gateways,
        "no gateways",
    ),
)
