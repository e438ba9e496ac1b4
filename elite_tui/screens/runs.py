"""Runs: all runs of this user, newest first."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import on
from textual.content import Content
from textual.widgets import DataTable, Static

from elite_tui.actions import bindings_for, room_actions
from elite_tui.figures import number_in_words, printable
from elite_tui.screens.room import RoomScreen

if TYPE_CHECKING:
    from collections.abc import Iterable

    from textual.binding import BindingType
    from textual.widget import Widget

    from engine.runtime.run_summary import RunSummary

STATUS_MARKS = {
    "starting": "●",
    "running": "●",
    "paused": "Ⅱ",
    "completed": "✓",
    "stopped": "■",
    "failed": "✗",
    "died": "✗",
}

COLUMNS: tuple[tuple[str, int], ...] = (
    ("status", 0),
    ("name", 0),
    ("model", 100),
    ("step", 0),
    ("loss", 100),
    ("perplexity", 0),
    ("started", 0),
    ("run", 100),
)
"Heading of each column, and the width of the terminal from which on it is shown."


class RunsScreen(RoomScreen):
    """The list of runs."""

    ROOM = "runs"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings_for(room_actions(ROOM))]
    CSS_PATH = "runs.tcss"

    def compose_room(self) -> Iterable[Widget]:
        """One line about the list, and the list."""
        yield Static(id="about", markup=False)
        yield DataTable(id="runs", cursor_type="row", cell_padding=1)

    def on_mount(self) -> None:
        """The list is read on entering."""
        super().on_mount()
        self.query_one(DataTable).focus()
        if self.state.runs.value is None and not self.state.runs.loading:
            self.elite.ask_runs()

    def show(self, what: str) -> None:
        """Draws the list."""
        if what not in ("all", "runs", "run"):
            return
        fetched = self.state.runs
        runs = fetched.value or ()
        about = self.query_one("#about", Static)
        error = fetched.error or self.state.opening
        if error is not None:
            about.update(Content.assemble(("✗ ", "$text-error"), error.message, (f"; {error.remedy}", "$muted")))
        elif fetched.loading:
            about.update(Content.styled("reading the runs …", "$muted"))
        elif not runs:
            about.update(Content("no runs yet: n starts the wizard, `engine train` starts one without it"))
        else:
            about.update(Content.styled(f"{len(runs)} run{'s' if len(runs) != 1 else ''}, newest first", "$muted"))
        if what != "run":
            self._fill(runs)

    def _fill(self, runs: Iterable[RunSummary]) -> None:
        table = self.query_one(DataTable)
        row = table.cursor_row
        table.clear(columns=True)
        headings = [heading for heading, from_width in COLUMNS if self.size.width >= from_width]
        for heading in headings:
            table.add_column(heading, key=heading)
        for run in runs:
            cells = _cells(run)
            table.add_row(*(Text(cells[heading]) for heading in headings), key=str(run.path))
        table.move_cursor(row=row)

    @on(DataTable.RowSelected)
    def _row_selected(self, event: DataTable.RowSelected) -> None:
        self._open(event.row_key.value)

    def _open(self, path: str | None) -> None:
        if path is not None:
            self.elite.link.open_run(path)

    def action_open_run(self) -> None:
        """The run under the cursor, in the monitor."""
        table = self.query_one(DataTable)
        if table.row_count:
            self._open(table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value)

    def action_new_run(self) -> None:
        """To the wizard."""
        self.elite.begin_wizard()

    def action_rescan(self) -> None:
        """Reads the list again."""
        self.elite.ask_runs()

    def on_resize(self) -> None:
        """Another width shows other columns."""
        self.call_after_refresh(self.show, "runs")


def _cells(run: RunSummary) -> dict[str, str]:
    started = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.started)) if run.started is not None else "n/a"
    before, after = number_in_words(run.perplexity_before), number_in_words(run.perplexity_after)
    return {
        "status": f"{STATUS_MARKS.get(run.status, '?')} {run.status}",
        "name": printable(run.model_name),
        "model": printable(run.model),
        "step": f"{run.step:,}/{run.total_steps:,}" if run.total_steps else f"{run.step:,}",
        "loss": number_in_words(run.loss),
        "perplexity": f"{before} → {after}" if run.perplexity_before is not None else "n/a",
        "started": started,
        "run": printable(run.id),
    }
