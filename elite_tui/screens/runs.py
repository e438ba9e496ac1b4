"""Lists the user's runs, to open, compare or delete."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import on
from textual.binding import Binding
from textual.content import Content
from textual.widgets import DataTable, Input, Static

from elite_tui.actions import bindings_for, screen_actions
from elite_tui.format.figures import context_in_words, number_in_words, printable
from elite_tui.runs.comparison import LETTERS
from elite_tui.screens.app_screen import AppScreen
from elite_tui.screens.confirm import TypedConfirmScreen
from elite_tui.state_part import Parts, StatePart
from elite_tui.widgets.line_input import LineInput
from elite_tui.widgets.table import Table
from engine.quantities import counted

if TYPE_CHECKING:
    from textual.binding import BindingType
    from textual.widget import Widget

    from elite_tui.screens.app_screen import Elite
    from engine.runs.run_summary import RunSummary

STATUS_MARKS = {
    "starting": "●",
    "running": "●",
    "paused": "Ⅱ",
    "completed": "✓",
    "stopped": "■",
    "failed": "✗",
    "died": "✗",
}
TRAINING = frozenset({"starting", "running", "paused"})
RESUMABLE = frozenset({"stopped", "failed", "died"})
REFRESH_SECONDS = 5.0
"Seconds after which the list is read again while a run trains."
SHORT_ID = 4
"""Last characters of a run's id, which distinguish runs of one name."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of the list."""

    name: str
    cell: Callable[[RunSummary], str]
    key: Callable[[RunSummary], object]
    "Sort key; runs without a value come last."
    from_width: int = 0
    "Minimum width of the terminal that shows the column."
    newest_first: bool = False


COLUMNS: tuple[Column, ...] = (
    Column(name="status", cell=lambda run: f"{STATUS_MARKS.get(run.status, '?')} {run.status}", key=lambda r: r.status),
    Column(name="name", cell=lambda run: printable(run.model_name), key=lambda run: run.model_name.lower()),
    Column(name="model", cell=lambda run: printable(run.model), key=lambda run: run.model.lower(), from_width=100),
    Column(
        name="context",
        cell=lambda run: context_in_words(run.context) if run.context else "n/a",
        key=lambda run: run.context,
        from_width=120,
    ),
    Column(
        name="step",
        cell=lambda run: f"{run.step:,}/{run.total_steps:,}" if run.total_steps else f"{run.step:,}",
        key=lambda run: run.step,
    ),
    Column(name="loss", cell=lambda run: number_in_words(run.loss), key=lambda run: run.loss, from_width=100),
    Column(
        name="perplexity",
        cell=lambda run: _change(run.perplexity_before, run.perplexity_after),
        key=lambda run: run.perplexity_after,
    ),
    Column(name="started", cell=lambda run: _clock(run.started), key=lambda run: run.started, newest_first=True),
    Column(name="run", cell=lambda run: printable(run.id), key=lambda run: run.id, from_width=130),
)
STARTED = next(index for index, column in enumerate(COLUMNS) if column.name == "started")


def _change(before: float | None, after: float | None) -> str:
    if before is None:
        return "n/a"
    change = f" {'▼' if after < before else '▲'} {abs(after / before - 1):.0%}" if after is not None and before else ""
    return f"{number_in_words(before)} → {number_in_words(after)}{change}"


def _clock(seconds: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds is not None else "n/a"


def matching(runs: Iterable[RunSummary], text: str) -> list[RunSummary]:
    """Filters the runs whose id, model or status contain every word of a text."""
    words = text.lower().split()
    return [
        run
        for run in runs
        if all(word in f"{run.id} {run.model_name} {run.model} {run.status}".lower() for word in words)
    ]


def in_order(runs: Sequence[RunSummary], column: Column, *, turned: bool) -> list[RunSummary]:
    """Sorts the runs by a column; those without a value come last in both orders."""
    known = [run for run in runs if column.key(run) is not None]
    known.sort(key=column.key, reverse=column.newest_first is not turned)  # type: ignore[arg-type]
    return [*known, *(run for run in runs if column.key(run) is None)]


class RunTable(Table[str | Text]):
    """The table of runs. It shows enter in the footer itself, since its binding hides the screen's."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "select_cursor", "Open")]


class RunsScreen(AppScreen):
    """Screen with the list of runs."""

    ROOM = "runs"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings_for(screen_actions(ROOM))]
    CSS_PATH = "runs.tcss"

    def __init__(self, elite: Elite) -> None:
        super().__init__(elite)
        self._column = STARTED
        self._turned = False
        self._marked: dict[str, None] = {}
        "Paths of the marked runs, in the order of marking."
        self._shown: list[RunSummary] = []
        self._drawn: tuple[object, ...] = ()
        "Inputs of the drawn table."

    def compose_body(self) -> Iterable[Widget]:
        """Composes a summary line, the filter, and the table."""
        yield Static(id="about", markup=False)
        yield LineInput(id="filter", placeholder="words of the name, model or status (esc shows all)", compact=True)
        yield RunTable(id="runs", cursor_type="row", cell_padding=1, zebra_stripes=False)

    def enter(self) -> None:
        """Reads the list on entry."""
        self.query_one(RunTable).focus()
        if not self.state.runs.loading:
            self.elite.run_desk.ask_runs()
        self.set_interval(REFRESH_SECONDS, self._follow)

    def _follow(self) -> None:
        runs = self.state.runs
        if not runs.loading and any(run.status in TRAINING for run in runs.value or ()):
            self.elite.run_desk.ask_runs()

    def show(self, changed: Parts) -> None:
        """Draws the list."""
        if StatePart.RUNS in changed:
            self._fill()
        elif StatePart.RUN in changed:
            self._tell()

    def on_resize(self) -> None:
        """Fits the columns to the new width."""
        self.call_after_refresh(self._fill)

    # --- drawing -------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        runs = matching(self.state.runs.value or (), self.query_one("#filter", Input).value)
        self._shown = in_order(runs, COLUMNS[self._column], turned=self._turned)
        drawn = (self._shown, tuple(self._marked), self._column, self._turned, self.size.width)
        if drawn == self._drawn:
            self._tell()
            return
        self._drawn = drawn
        table = self.query_one(RunTable)
        under = self._under_cursor()
        row = table.cursor_row
        table.clear(columns=True)
        visible = [index for index, column in enumerate(COLUMNS) if self.size.width >= column.from_width]
        table.add_column("", key="mark")
        for index in visible:
            arrow = " ▾" if index == self._column else ""
            arrow = " ▴" if arrow and self._turned else arrow
            table.add_column(f"{COLUMNS[index].name}{arrow}", key=str(index))
        for run in self._shown:
            mark = "◉" if str(run.path) in self._marked else " "
            table.add_row(mark, *(Text(COLUMNS[index].cell(run)) for index in visible), key=str(run.path))
        paths = [str(run.path) for run in self._shown]
        table.move_cursor(row=paths.index(under) if under in paths else row)
        self._tell()

    def _tell(self) -> None:
        fetched = self.state.runs
        about = self.query_one("#about", Static)
        count, shown = len(fetched.value or ()), len(self._shown)
        error = fetched.error or self.state.opening
        if error is not None:
            about.update(Content.assemble(("✗ ", "$text-error"), error.message, (f"; {error.remedy}", "$muted")))
        elif fetched.loading and not count:
            about.update(Content.styled("reading the runs …", "$muted"))
        elif not count:
            about.update(Content("no runs yet: n starts the wizard, `engine train` starts one without it"))
        else:
            words = counted(count, "run") if shown == count else f"{shown:,} of {count:,} runs"
            marked = f" · ◉ {len(self._marked)} marked, c compares them" if self._marked else ""
            about.update(Content.styled(f"{words} · by {COLUMNS[self._column].name}{marked}", "$muted"))

    def _under_cursor(self) -> str | None:
        table = self.query_one(RunTable)
        if not table.row_count:
            return None
        return table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value

    def _run_under_cursor(self) -> RunSummary | None:
        path = self._under_cursor()
        return next((run for run in self._shown if str(run.path) == path), None)

    # --- actions -------------------------------------------------------------------------------------------

    @on(DataTable.RowSelected)
    def _row_selected(self, event: DataTable.RowSelected) -> None:
        if event.row_key.value is not None:
            self.elite.run_desk.open([event.row_key.value])

    @on(DataTable.RowHighlighted)
    def _row_highlighted(self) -> None:
        """Shows the keys of the run under the cursor in the footer."""
        self.refresh_bindings()

    @on(DataTable.HeaderSelected)
    def _header_selected(self, event: DataTable.HeaderSelected) -> None:
        key = event.column_key.value
        if key is None or not key.isdigit():
            return
        self._turned = self._column == int(key) and not self._turned
        self._column = int(key)
        self._fill()

    def action_open_run(self) -> None:
        """Opens the run under the cursor in the monitor."""
        path = self._under_cursor()
        if path is not None:
            self.elite.run_desk.open([path])

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002
        """Allows resuming only a run that ended before its last step."""
        if action != "resume":
            return True
        run = self._run_under_cursor() if self.query(RunTable) else None  # asked before and after the table is there
        return run is not None and run.status in RESUMABLE and not self.state.launching

    def action_resume(self) -> None:
        """Resumes the run under the cursor from its last checkpoint, and shows it."""
        run = self._run_under_cursor()
        if run is not None:
            self.elite.run_desk.resume(run.path)

    def action_mark_run(self) -> None:
        """Toggles the mark of the run under the cursor, and moves the cursor down."""
        path = self._under_cursor()
        if path is None:
            return
        if path in self._marked:
            del self._marked[path]
        elif len(self._marked) < len(LETTERS):
            self._marked[path] = None
        else:
            self.notify(f"at most {len(LETTERS)} runs are compared", timeout=3)
        self._fill()
        self.query_one(RunTable).action_cursor_down()

    def action_compare_runs(self) -> None:
        """Compares the marked runs side by side."""
        marked = [run for path in self._marked for run in self.state.runs.value or () if str(run.path) == path]
        if len(marked) < 2:
            self.notify("mark two runs or more with space, then compare them", timeout=4)
            return
        self.elite.run_desk.compare(marked)

    def action_delete_run(self) -> None:
        """Deletes the run under the cursor once a part of its name is typed."""
        run = self._run_under_cursor()
        if run is None:
            return
        if run.status in TRAINING:
            self.notify(f"{printable(run.id)} is {run.status}: stop it first", severity="warning", markup=False)
            return

        def answered(agreed: str | None) -> None:
            if agreed == "agreed":
                self._marked.pop(str(run.path), None)
                self.elite.run_desk.delete(run.id, run.path)

        self.app.push_screen(
            TypedConfirmScreen(
                f"Delete {printable(run.model_name)}?",
                f"{printable(str(run.path))} is permanently deleted, with its checkpoints, its adapter and its log.",
                run.id[-SHORT_ID:],
                "Delete",
            ),
            answered,
        )

    def action_filter_runs(self) -> None:
        """Opens the filter."""
        self.query_one("#filter").display = True
        self.query_one("#filter").focus()

    def action_end_filter(self) -> None:
        """Clears the filter and shows all runs; without a filter, goes back."""
        entry = self.query_one("#filter", Input)
        if not entry.display:
            self.elite.leave_runs()
            return
        entry.value = ""
        entry.display = False
        self.query_one(RunTable).focus()

    @on(Input.Changed, "#filter")
    def _filter_typed(self) -> None:
        self._fill()

    @on(Input.Submitted, "#filter")
    def _filter_done(self) -> None:
        self.query_one(RunTable).focus()

    def action_sort_runs(self) -> None:
        """Sorts by the next visible column."""
        visible = [index for index, column in enumerate(COLUMNS) if self.size.width >= column.from_width]
        self._column = next((index for index in visible if index > self._column), visible[0])
        self._turned = False
        self._fill()

    def action_turn_sort(self) -> None:
        """Reverses the order."""
        self._turned = not self._turned
        self._fill()

    def action_new_run(self) -> None:
        """Switches to the wizard."""
        self.elite.begin_wizard()

    def action_rescan(self) -> None:
        """Reads the list again."""
        self.elite.run_desk.ask_runs()
