"""The screen of `orchestrator top`."""

from __future__ import annotations

import asyncio
import signal
from typing import ClassVar, Final

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.coordinate import Coordinate
from textual.widgets import DataTable, Footer, Input, Static

from client.errors import ClientError
from client.overview import Overview
from client.printable import printable
from client.sections import SECTIONS, Order, Section, headline, lines

TICK_S: Final = 0.5
"""How often the age of the view is written anew."""
UP, DOWN = "▲", "▼"


class SectionTable(DataTable[Text]):
    """One table, sorted as its user wants it."""

    def __init__(self, section: Section) -> None:
        super().__init__(id=section.name, cursor_type="row", zebra_stripes=True)
        self.section = section
        self.order = Order()

    def on_mount(self) -> None:
        for column in self.section.columns:
            # Room for the arrow, so that nothing moves when it comes.
            self.add_column(f"{column.title} {DOWN}", key=column.title)
        self.label()

    def label(self) -> None:
        """Write the arrow where the table is sorted."""
        for number, (column, shown) in enumerate(zip(self.section.columns, self.ordered_columns, strict=True)):
            arrow = (DOWN if self.order.descending else UP) if number == self.order.column else " "
            shown.label = Text(f"{column.title} {arrow}", justify=column.justify)
        self.refresh()

    def write(self, rows: list[list[str]]) -> None:
        """Show these rows. Only cells that have changed are touched; the cursor stays at its line."""
        at_line = self.cursor_row
        if self.row_count > len(rows):
            self.clear()  # to remove row by row takes seconds where a thousand go
        for number, cells in enumerate(rows):
            texts = [
                Text(cell, justify=column.justify) for cell, column in zip(cells, self.section.columns, strict=True)
            ]
            if number >= self.row_count:
                self.add_row(*texts)
                continue
            for place, (text, column) in enumerate(zip(texts, self.ordered_columns, strict=True)):
                at = Coordinate(number, place)
                if self.get_cell_at(at) != text:
                    # Columns do not become narrower: all their cells would be measured, for each that has changed.
                    self.update_cell_at(at, text, update_width=text.cell_len > column.content_width)
        if self.cursor_row != at_line:
            self.move_cursor(row=at_line, scroll=False)


class Top(App[None]):
    """Looks at the system every so many seconds, and shows what it sees. `follow()` is the way in."""

    CSS = """
    #headline { height: 1; background: $panel; }
    #fault { height: auto; color: $error; display: none; }
    #wanted { display: none; }
    .title { color: $accent; }
    DataTable { height: auto; margin-bottom: 1; }
    """
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "quit"),
        Binding("ctrl+c", "quit", "quit", show=False, priority=True),
        Binding("p", "pause", "pause"),
        Binding("slash", "filter", "filter"),
        Binding("escape", "all", "all rows", show=False),
        Binding("s", "sort", "sort"),
        Binding("r", "reverse", "reverse"),
    ]

    def __init__(self, view: Overview, every_s: float) -> None:
        super().__init__()
        self._view = view
        self._every_s = every_s
        self._resumed = asyncio.Event()
        self._resumed.set()
        self._fault: ClientError | None = None
        self._wanted = ""
        # Held, not looked up: what was asked may be answered when the screen is being taken down.
        self._headline = Static(id="headline", markup=False)
        self._fault_line = Static(id="fault", markup=False)
        self._filter = Input(id="wanted", placeholder="show rows with…", compact=True)
        self._tables = [SectionTable(section) for section in SECTIONS]
        self._titles = [Static(id=f"{section.name}-title", classes="title", markup=False) for section in SECTIONS]

    async def follow(self) -> bool:
        """Run until the user leaves. False if the screen broke down, which it has told of then."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.exit)  # or the terminal would stay as it is
        try:
            await self.run_async()
        finally:
            loop.remove_signal_handler(signal.SIGTERM)
        return self.return_code == 0

    def compose(self) -> ComposeResult:
        yield self._headline
        yield self._fault_line
        yield self._filter
        with VerticalScroll(can_focus=False):
            for title, table in zip(self._titles, self._tables, strict=True):
                yield title
                yield table
        yield Footer()

    def on_mount(self) -> None:
        self._tables[0].focus()
        self._show()
        self.set_interval(TICK_S, self._show_headline)
        self.run_worker(self._look_again())

    async def _look_again(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            await self._resumed.wait()
            try:
                await self._view.look()
                self._fault = None
            except ClientError as exc:
                self._fault = exc
            self._show()

    # --- what is shown --------------------------------------------------------------------------------

    def _show(self) -> None:
        with self.batch_update():
            self._show_headline()
            for title, table in zip(self._titles, self._tables, strict=True):
                rows = lines(table.section, self._view, table.order, self._wanted)
                table.write(rows)
                said = table.section.name
                if not rows:
                    said = f"no {said} with {self._wanted!r}" if self._wanted else table.section.empty
                title.update(said)

    def _show_headline(self) -> None:
        age_s = self._view.age_s
        states = [] if self._resumed.is_set() else ["paused"]
        if self._fault is not None:
            states.append(self._view.gateways[0].state)
        # A view that is only as old as it must be says nothing of its age.
        if age_s is None:
            states.append("workers and queues are not known yet")
        elif states or age_s > 2 * self._every_s + TICK_S:
            states.append(f"as it was {age_s:.0f} s ago")
        self._headline.update(" · ".join([headline(self._view), *states]))
        self._fault_line.display = self._fault is not None
        self._fault_line.update(printable(self._fault.message) if self._fault else "")

    # --- keys -----------------------------------------------------------------------------------------

    def action_pause(self) -> None:
        if self._resumed.is_set():
            self._resumed.clear()
        else:
            self._resumed.set()
        self._show_headline()

    def action_filter(self) -> None:
        self._filter.display = True
        self._filter.focus()

    def action_all(self) -> None:
        """End the filter."""
        self._filter.value = ""
        self._filter.display = False
        self.screen.focus_next(SectionTable)

    def on_input_changed(self, event: Input.Changed) -> None:
        self._wanted = event.value
        self._show()

    def on_input_submitted(self) -> None:
        """The filter stays; keys are commands again."""
        self.screen.focus_next(SectionTable)

    def action_sort(self) -> None:
        table = self._table()
        self._sort(table, table.order.next_column(len(table.section.columns)))

    def action_reverse(self) -> None:
        table = self._table()
        self._sort(table, table.order.reversed())

    def _sort(self, table: SectionTable, order: Order) -> None:
        table.order = order
        table.label()
        self._show()

    def _table(self) -> SectionTable:
        """The one that has the focus, or the first."""
        focused = self.focused
        return focused if isinstance(focused, SectionTable) else self._tables[0]
