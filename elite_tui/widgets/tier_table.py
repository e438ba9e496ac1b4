"""Shows the eleven tiers as rows, with as many columns as the width allows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from elite_tui.format.figures import context_in_words, count_in_words, duration_in_words, size_or_dash
from elite_tui.format.layout import line_bar
from elite_tui.format.tiers import epoch_seconds, short_places
from elite_tui.widgets.table import Table

if TYPE_CHECKING:
    from textual.theme import Theme

    from elite_tui.wizard.plans import Plans
    from engine.plan.planner import TierPlan

COLUMNS: tuple[tuple[str, int, bool], ...] = (
    ("tier", 0, True),
    ("context", 0, True),
    ("fits", 0, False),
    ("GPU", 0, True),
    ("RAM", 0, True),
    ("disk", 90, True),
    ("a step", 0, True),
    ("steps", 62, True),
    ("an epoch", 66, True),
    ("one window holds", 96, False),
)
"Heading of each column, the minimum width of the table that shows it, and whether it holds figures."
BARS_FROM = 112
"Width from which memory stands beside a small bar."
_BAR = 4


class TierTable(Table[Text]):
    """The table. Its screen fills it; rows are in the order of the tiers."""

    def __init__(self, *, id: str) -> None:  # noqa: A002
        super().__init__(id=id, cursor_type="row", zebra_stripes=False, cell_padding=1)
        self._shown: tuple[object, ...] = ()
        self._filled: tuple[Plans, int | None] | None = None

    def fill(self, plans: Plans, chosen: int | None) -> None:
        """Redraws the rows; keeps the cursor's row, initially the chosen one."""
        self._filled = (plans, chosen)
        width = self.size.width
        if not width:
            return  # not laid out yet: the first resize fills it
        absent = set() if plans.machine.gpus else {"GPU"}
        columns = [column for column in COLUMNS if width >= column[1] and column[0] not in absent]
        headings = tuple(heading for heading, _, _ in columns)
        shown = (plans, chosen, self.app.theme, width)
        if shown == self._shown:
            return
        row = self.cursor_row if self.row_count else None
        known = tuple(str(column.label) for column in self.ordered_columns)
        anew = known != headings or self._shown[-1:] != (width,)
        self._shown = shown
        self.clear(columns=anew)
        if anew:
            for heading, _, figures in columns:
                self.add_column(Text(heading, justify="right" if figures else "left"), key=heading)
        for plan in plans.table.tiers:
            cells = self._cells(plan, plans, chosen, width)
            self.add_row(*(cells[heading] for heading in headings), key=str(plan.tier))
        self.move_cursor(row=self.row_of(plans, chosen) if row is None else row)

    def on_mount(self) -> None:
        """Takes the colours of each theme that is switched to: cells hold those that they were made with."""
        self.app.theme_changed_signal.subscribe(self, self._recolour)

    def _recolour(self, _: Theme) -> None:
        if self._filled is not None:
            self.fill(*self._filled)

    def on_resize(self) -> None:
        """Fits the columns to the new width."""
        if self._filled is not None:
            self.fill(*self._filled)

    @staticmethod
    def row_of(plans: Plans, chosen: int | None) -> int:
        """Returns the row of the chosen tier, else of the recommended one."""
        tier = chosen or plans.table.recommended or 1
        return next((index for index, plan in enumerate(plans.table.tiers) if plan.tier == tier), 0)

    def _cells(self, plan: TierPlan, plans: Plans, chosen: int | None, width: int) -> dict[str, Text]:
        colours = self.app.theme_variables
        style = "" if plan.fits else colours["faint"]
        known = {plans.table.ceiling: "▲", plans.table.recommended: "★"}
        mark = known.get(plan.tier, "") + ("●" if plan.tier == chosen else "")
        fits = "✓" if plan.in_time else "✓ slow" if plan.fits else "✗ " + " ".join(short_places(plan, plans))
        colour = colours["success"] if plan.in_time else colours["warning" if plan.fits else "error"]
        marked = f"bold {colours['accent']}" if mark.strip() else style

        def figure(text: str) -> Text:
            return Text(text, style=style, justify="right")

        def memory(used: int, limit: int | None) -> Text:
            text = Text(f"{size_or_dash(used):>9}", style=style, justify="right")
            if width < BARS_FROM or not limit:
                return text
            level = Text(
                line_bar(used / limit, _BAR), style=colour if not plan.fits and used > limit else colours["primary"]
            )
            return Text.assemble(level, " ", text)

        gpu = plans.machine.gpus[0].memory_total if plans.machine.gpus else None
        return {
            "tier": Text(f"{mark:<2} {plan.tier:>2}", style=marked, justify="right"),
            "context": figure(context_in_words(plan.context)),
            "fits": Text(fits, style=colour),
            "GPU": memory(plan.gpu_peak_bytes, gpu),
            "RAM": memory(plan.host_peak_bytes, plans.machine.ram_total),
            "disk": figure(size_or_dash(plan.disk_bytes)),
            "a step": figure(duration_in_words(plan.step_seconds)),
            "steps": figure(count_in_words(plan.steps_per_epoch)),
            "an epoch": figure(duration_in_words(epoch_seconds(plan))),
            "one window holds": Text("this repository" if plan.holds_repository else plan.sees, style=style),
        }
