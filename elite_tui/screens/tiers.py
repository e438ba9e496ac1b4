"""Tiers: eleven contexts on this machine with this model, what each costs, and where its memory goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import on
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Button, DataTable, Static

from elite_tui.actions import bindings_for, room_actions
from elite_tui.figures import (
    NOT_AVAILABLE,
    bytes_in_words,
    context_in_words,
    count_in_words,
    duration_in_words,
    printable,
)
from elite_tui.screens.room import RoomScreen
from elite_tui.widgets.breakdown import Breakdown

if TYPE_CHECKING:
    from collections.abc import Iterable

    from textual.binding import BindingType
    from textual.widget import Widget

    from elite_tui.plans import Plans
    from engine.plan.planner import TierPlan

COLUMNS: tuple[tuple[str, int], ...] = (
    ("tier", 0),
    ("context", 0),
    ("fits", 0),
    ("GPU", 0),
    ("RAM", 0),
    ("disk", 100),
    ("a step", 0),
    ("steps/epoch", 0),
    ("an epoch", 0),
    ("holds", 100),
)
"Heading of each column, and the width of the terminal from which on it is shown."


class TiersScreen(RoomScreen):
    """The room of the context."""

    ROOM = "tiers"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings_for(room_actions(ROOM))]
    CSS_PATH = "tiers.tcss"

    def compose_room(self) -> Iterable[Widget]:
        """The table, the sum of the row under the cursor, and what was chosen."""
        yield Static(id="choice", markup=False)
        with Vertical(id="split"):
            yield DataTable(id="tiers", cursor_type="row", zebra_stripes=False, cell_padding=1)
            with VerticalScroll(id="sum", can_focus=True):
                yield Static(id="verdict", markup=False)
                yield Breakdown(id="breakdown")
        with Horizontal(classes="buttons"):
            yield Button("Back", id="back", compact=True)
            yield Button("Continue", id="forward", variant="primary", compact=True)

    def on_mount(self) -> None:
        """The cursor stands on the chosen tier."""
        super().on_mount()
        self.query_one(DataTable).focus()

    def show(self, what: str) -> None:
        """Draws the table for the present choices."""
        if what not in ("all", "machine", "repository", "tiers", "draft"):
            return
        fetched = self.state.tiers
        self.query_one("#choice", Static).update(self._choice())
        table = self.query_one(DataTable)
        table.loading = fetched.value is None and fetched.loading
        if fetched.value is not None:
            self._fill(table, fetched.value)

    def _choice(self) -> Content:
        """What a run would use now, in one line; or why there is no table."""
        fetched = self.state.tiers
        problems = self.state.draft.problems()
        for error in (self.state.machine.error, fetched.error):
            if error is not None:
                return Content.assemble(("✗ ", "$text-error"), error.message, (f"; {error.remedy}", "$muted"))
        if fetched.value is None:
            if problems:
                path = next(iter(problems))
                return Content.assemble(("✗ ", "$text-error"), f"{path} has a problem: correct it first")
            return Content.styled("planning …", "$muted")
        plans = fetched.value
        head = Content.assemble((printable(plans.spec.name), "bold"), (f" on {_device(plans)}  ", "$muted"))
        if plans.refusal is not None:
            return head.append(
                Content.assemble(("✗ ", "$text-error"), plans.refusal.message, (f"; {plans.refusal.remedy}", "$muted"))
            )
        return head.append(printable(plans.choice.note) if plans.choice is not None else "")

    def _fill(self, table: DataTable[Text], plans: Plans) -> None:
        width = self.size.width
        absent = {"GPU"} if not plans.machine.gpus else set()
        headings = [heading for heading, from_width in COLUMNS if width >= from_width and heading not in absent]
        shown = [str(column.label) for column in table.ordered_columns]
        row = table.cursor_row if table.row_count else self._chosen_row(plans)
        if shown != headings:
            table.clear(columns=True)
            for heading in headings:
                table.add_column(heading, key=heading)
        else:
            table.clear()
        for plan in plans.table.tiers:
            cells = self._cells(plan, plans.table.recommended)
            table.add_row(*(cells[heading] for heading in headings), key=str(plan.tier))
        table.move_cursor(row=row)
        self._show_sum(row)

    def _chosen_row(self, plans: Plans) -> int:
        chosen = self.state.draft.get("training.tier") or plans.table.recommended or 1
        return next((index for index, plan in enumerate(plans.table.tiers) if plan.tier == chosen), 0)

    def _cells(self, plan: TierPlan, recommended: int | None) -> dict[str, Text]:
        colours = self.app.theme_variables
        style = "" if plan.fits else "dim"
        mark = "★" if plan.tier == recommended else " "
        chosen = "●" if plan.tier == self.state.draft.get("training.tier") else " "
        epoch = plan.steps_per_epoch * plan.step_seconds if plan.steps_per_epoch is not None else None
        fits = "✓" if plan.in_time else "✓ slow" if plan.fits else "✗"
        colour = colours["success"] if plan.in_time else colours["warning" if plan.fits else "error"]
        return {
            "tier": Text(f"{mark}{chosen}{plan.tier:>2}", style=f"bold {colours['accent']}" if mark == "★" else style),
            "context": Text(context_in_words(plan.context), style=style, justify="right"),
            "fits": Text(fits, style=colour),
            "GPU": Text(_bytes(plan.gpu_peak_bytes), style=style, justify="right"),
            "RAM": Text(_bytes(plan.host_peak_bytes), style=style, justify="right"),
            "disk": Text(_bytes(plan.disk_bytes), style=style, justify="right"),
            "a step": Text(duration_in_words(plan.step_seconds), style=style, justify="right"),
            "steps/epoch": Text(count_in_words(plan.steps_per_epoch), style=style, justify="right"),
            "an epoch": Text(duration_in_words(epoch), style=style, justify="right"),
            "holds": Text("this repository" if plan.holds_repository else plan.sees, style=style),
        }

    @on(DataTable.RowHighlighted)
    def _row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        self._show_sum(event.cursor_row)

    def _show_sum(self, row: int) -> None:
        plans = self.state.tiers.value
        if plans is None or not 0 <= row < len(plans.table.tiers):
            return
        plan = plans.table.tiers[row]
        self.query_one("#verdict", Static).update(verdict(plan, recommended=plan.tier == plans.table.recommended))
        machine = plans.machine
        self.query_one(Breakdown).show(
            plan.parts,
            {
                "gpu": machine.gpus[0].memory_total if machine.gpus else None,
                "host": machine.ram_total,
                "disk": machine.disk_free,
            },
        )

    @on(DataTable.RowSelected)
    def _row_selected(self, event: DataTable.RowSelected) -> None:
        """Enter chooses a tier that fits; chosen already, it goes on to the next room."""
        plans = self.state.tiers.value
        if plans is None:
            return
        plan = plans.table.tiers[event.cursor_row]
        draft = self.state.draft
        if not plan.fits:
            self.notify(f"{plan.reason}; {plan.remedy}", title=f"tier {plan.tier}", severity="warning", markup=False)
        elif draft.get("training.tier") == plan.tier:
            self.action_forward()
        else:
            draft.reset("training.context")
            draft.set("training.tier", plan.tier)
            self.elite.draft_changed("training.tier")

    def action_recommend(self) -> None:
        """Leaves the choice to the engine."""
        draft = self.state.draft
        draft.reset("training.tier")
        draft.reset("training.context")
        self.elite.draft_changed("training.tier")
        plans = self.state.tiers.value
        if plans is not None:
            self.query_one(DataTable).move_cursor(row=self._chosen_row(plans))

    def action_rescan(self) -> None:
        """Looks at the machine and plans again."""
        self.elite.ask_machine()

    @on(Button.Pressed, "#forward")
    def _forward_pressed(self) -> None:
        self.action_forward()

    @on(Button.Pressed, "#back")
    def _back_pressed(self) -> None:
        self.action_back()

    def on_resize(self) -> None:
        """Another width shows other columns."""
        self.call_after_refresh(self.show, "tiers")


def verdict(plan: TierPlan, *, recommended: bool) -> Content:
    """One tier in a few words: what it is, whether it fits, and what would make it fit."""
    head = Content.styled(f"Tier {plan.tier} · {plan.context:,} tokens · {plan.precision}", "bold")
    head = head.append(Content.styled(" · predicted, not measured", "$muted"))
    if plan.stream is not None:
        exact = "exact" if plan.stream.exact else "approximate"
        head = head.append(Content.styled(f" · streamed in tiles of {plan.stream.tile:,}, {exact}", "$muted"))
    lines = [head]
    if recommended:
        lines.append(
            Content.styled("★ recommended: the highest that fits and that the repository fills", "$text-accent")
        )
    if not plan.fits:
        lines.append(Content.assemble(("✗ does not fit: ", "$text-error"), plan.reason, (f"; {plan.remedy}", "$muted")))
    elif plan.reason:
        lines.append(Content.assemble(("! ", "$text-warning"), plan.reason))
    if plan.steps_per_epoch == 1:
        lines.append(Content.styled("one step is a whole epoch: raise the epochs for more updates", "$muted"))
    return Content("\n").join(lines)


def _bytes(count: int) -> str:
    return bytes_in_words(count) if count else "-"


def _device(plans: Plans) -> str:
    if plans.machine.gpus:
        gpu = plans.machine.gpus[0]
        return f"{printable(gpu.name)} {bytes_in_words(gpu.memory_total)}"
    return f"CPU, {bytes_in_words(plans.machine.ram_total) or NOT_AVAILABLE} RAM"
