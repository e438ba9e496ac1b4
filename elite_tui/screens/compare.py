"""Compares runs side by side: overlaid losses, figures, and differing settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rich.cells import cell_len
from rich.text import Text
from textual.content import Content
from textual.widgets import DataTable

from elite_tui.actions import bindings_for, screen_actions
from elite_tui.format.figures import printable
from elite_tui.runs.curves import STYLES, overlay
from elite_tui.runs.open_runs import short_title
from elite_tui.runs.panels import state_mark
from elite_tui.screens.chart_screen import ChartScreen
from elite_tui.state_part import Parts, StatePart
from elite_tui.widgets.chart import LineChart
from elite_tui.widgets.choice_bar import ChoiceBar
from elite_tui.widgets.diff_widget import Lines
from elite_tui.widgets.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from textual.binding import BindingType
    from textual.widget import Widget

    from elite_tui.runs.comparison import Comparison, Row

BEST = "★"


class CompareScreen(ChartScreen):
    """Screen that compares runs."""

    ROOM = "compare"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings_for(screen_actions(ROOM))]
    CSS_PATH = "compare.tcss"

    def compose_body(self) -> Iterable[Widget]:
        """Composes the list of runs, the chart and the table."""
        yield Lines(id="who")
        yield ChoiceBar(id="chart-tabs")
        yield LineChart(id="chart")
        yield Table[Text](id="table", cursor_type="row", cell_padding=1)

    def enter(self) -> None:
        """Focuses the table, which scrolls."""
        self.query_one(DataTable).focus()

    def show(self, changed: Parts) -> None:
        """Draws the comparison."""
        if StatePart.COMPARISON not in changed:
            return
        fetched = self.state.comparison
        who = self.query_one("#who", Lines)
        if fetched.error is not None:
            who.show([Content.assemble(("✗ ", "$text-error"), fetched.error.message, f"; {fetched.error.remedy}")])
        elif fetched.value is None:
            who.show([Content.styled("reading the runs …", "$muted")])
        else:
            who.styles.height = len(fetched.value.runs)
            who.show(_who(fetched.value))
            self._fill(fetched.value)
        self.draw_charts()

    def draw_charts(self) -> None:
        """Overlays the runs' losses."""
        comparison = self.state.comparison.value
        if comparison is not None:
            views = [(run.letter, run.view) for run in comparison.runs]
            self.query_one(LineChart).show(overlay(views, self.look))
        self.query_one("#chart-tabs", ChoiceBar).show([], self.switches())

    def _fill(self, comparison: Comparison) -> None:
        title = "settings that differ" if comparison.differing else "all settings are the same"
        heads = ["", *(f"{run.letter} {printable(short_title(run.view.run_id))}" for run in comparison.runs)]
        rows = [_cells(row) for row in comparison.figures]
        rows.append([Text(title, style="italic"), *(Text() for _ in comparison.runs)])
        rows += [_cells(row) for row in comparison.differing]
        table = self.query_one(DataTable)
        table.clear(columns=True)
        for index, head in enumerate(heads):
            table.add_column(Text(head), width=max(cell_len(head), *(row[index].cell_len for row in rows)))
        for row in rows:
            table.add_row(*row)

    def action_leave_comparison(self) -> None:
        """Returns to the list of runs."""
        self.elite.go("runs")

    def action_rescan(self) -> None:
        """Reads the runs again."""
        self.elite.run_desk.compare_again()


def _who(comparison: Comparison) -> list[Content]:
    lines = []
    for index, run in enumerate(comparison.runs):
        mark, style = state_mark(run.view)
        lines.append(
            Content.assemble(
                (f"{run.letter} ━ ", f"bold {STYLES[index % len(STYLES)]}"),
                f"{printable(run.view.run_id)}  ",
                (f"{mark} {run.view.state}", style),
            )
        )
    return lines


def _cells(row: Row) -> list[Text]:
    """Formats a row of the table; marks the best value."""
    values = [
        Text(f"{printable(value)} {BEST}", style="bold") if index == row.best else Text(printable(value))
        for index, value in enumerate(row.values)
    ]
    return [Text(row.name, style="dim"), *values]
