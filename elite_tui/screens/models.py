"""Shows the model catalogue, with each model's tiers on the planned machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import on
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import DataTable, Static

from elite_tui.format.figures import context_in_words, duration_in_words, parameters_in_words
from elite_tui.format.tiers import epoch_seconds, machine_in_words
from elite_tui.messages import Changed
from elite_tui.screens.app_screen import Watching
from elite_tui.state_part import StatePart
from elite_tui.widgets.table import Table

if TYPE_CHECKING:
    from textual.app import ComposeResult
    from textual.binding import BindingType

    from elite_tui.state import AppState
    from elite_tui.wizard.controller import WizardController
    from elite_tui.wizard.remedies import ModelOutlook
    from engine.models.spec import ModelSpec

COLUMNS: tuple[tuple[str, int, bool], ...] = (
    ("model", 0, False),
    ("parameters", 0, True),
    ("trained to", 96, True),
    ("licence", 108, False),
    ("recommended", 0, False),
    ("an epoch", 0, True),
    ("up to", 0, True),
)
"Heading, minimum width of the terminal, and whether the column holds figures."


class ModelsScreen(Watching, ModalScreen[str]):
    """Dialog to choose a model; answers with the model's name."""

    CSS_PATH = "models.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [("escape", "dismiss", "Close")]

    def __init__(self, state: AppState, controller: WizardController) -> None:
        super().__init__()
        self._state = state
        self._controller = controller
        self._filled: set[str] = set()
        "Models whose figures stand in the table."

    def compose(self) -> ComposeResult:
        """Composes a row per model."""
        with Vertical(id="dialog") as dialog:
            dialog.border_title = "Models"
            dialog.border_subtitle = "enter chooses · esc closes"
            yield Static(id="about", markup=False)
            yield Table[Text](id="models", cursor_type="row", cell_padding=1)
            yield Static(
                "A hub id or a local folder in Hugging Face format works too: type it into the model's field.",
                classes="muted",
                markup=False,
            )

    def on_mount(self) -> None:
        """Lists the models at once; requests each one's tiers, which follow one after the other."""
        table = self.query_one(DataTable)
        for heading, from_width, figures in COLUMNS:
            if self.app.size.width >= from_width:
                table.add_column(Text(heading, justify="right" if figures else "left"), key=heading)
        self._list()
        self._show()

    def _list(self) -> None:
        """Lists the models once there is a machine to plan for, and requests their tiers."""
        table = self.query_one(DataTable)
        self._controller.ask_models()
        plans = self._state.shown_plans
        if plans is not None:
            models, planned = self._controller.models(), self._state.planned_models
            for name, spec in models.items():
                table.add_row(*self._row(spec, planned.get(name)), key=name)
            self._filled.update(planned)
            # Once the table knows its height: before, there is nowhere to scroll to.
            present = list(models).index(plans.spec.name) if plans.spec.name in models else 0
            self.call_after_refresh(table.move_cursor, row=present)
            table.focus()

    @on(Changed)
    def _changed(self, message: Changed) -> None:
        if message.part in (StatePart.TIERS, StatePart.WHAT_IF):
            if not self.query_one(DataTable).row_count:  # opened before the plan was there
                self._list()
            self._show()
        elif message.part is StatePart.MODELS:
            self._show()

    def _show(self) -> None:
        plans, fetched = self._state.shown_plans, self._state.models
        about, table = self.query_one("#about", Static), self.query_one(DataTable)
        if fetched.error is not None and not fetched.loading:  # of this request, and not of the former one
            about.update(Content.assemble(("✗ ", "$text-error"), str(fetched.error)))
            table.clear()
            return
        if plans is None or (fetched.value is None and not fetched.loading):
            about.update(self._unplanned())
            return
        planned = self._state.planned_models
        words = Content.styled(f"on {machine_in_words(plans)}; predicted, not measured", "$muted")
        progress = f"   planning, {len(planned)} of {table.row_count} …" if fetched.loading else ""
        about.update(words.append(Content.styled(progress, "$text-accent")))
        for name in [name for name in planned if name not in self._filled and name in table.rows]:
            self._filled.add(name)
            for column, cell in zip(table.ordered_columns, self._row(planned[name].spec, planned[name]), strict=True):
                table.update_cell(name, column.key, cell, update_width=True)

    def _unplanned(self) -> Content:
        """Says why there are no tiers: they are being planned, the plan failed, or a field keeps it from starting."""
        asked = (self._state.what_if, self._state.tiers)
        if any(fetched.loading for fetched in asked):
            return Content.styled("planning this machine's tiers …", "$accent")
        error = next((fetched.error for fetched in asked if fetched.error is not None), None)
        if error is not None:
            return Content.assemble(("✗ ", "$text-error"), str(error))
        return Content.styled("the tiers are not planned yet: close this and correct what is wrong", "$muted")

    def _row(self, spec: ModelSpec, outlook: ModelOutlook | None) -> list[Text]:
        cells = self._cells(spec, outlook)
        return [cells[str(column.key.value)] for column in self.query_one(DataTable).ordered_columns]

    def _cells(self, spec: ModelSpec, outlook: ModelOutlook | None) -> dict[str, Text]:
        best, highest = (outlook.recommended, outlook.highest) if outlook is not None else (None, None)
        colours = self.app.theme_variables
        plans = self._state.shown_plans
        mark = "●" if plans is not None and spec.name == plans.spec.name else " "
        style = "" if highest is not None or outlook is None else colours["faint"]
        if outlook is None:
            tier = Text("…", style=colours["muted"])
        elif highest is None:
            tier = Text("✗ nothing fits", style=colours["error"])
        elif best is None:
            tier = Text("✓ slow", style=colours["warning"])
        else:
            number = f"tier {best.tier}, " if best.tier else ""
            tier = Text(f"★ {number}{context_in_words(best.context)}", style=colours["accent"])
        return {
            "model": Text(f"{mark} {spec.name}", style=style),
            "parameters": Text(parameters_in_words(spec.parameters), style=style, justify="right"),
            "trained to": Text(context_in_words(spec.max_context), style=style, justify="right"),
            "licence": Text(spec.licence, style=style),
            "recommended": tier,
            "an epoch": Text(duration_in_words(epoch_seconds(best)) if best else "-", style=style, justify="right"),
            "up to": Text(context_in_words(highest.context) if highest else "-", style=style, justify="right"),
        }

    @on(DataTable.RowSelected)
    def _row_selected(self, event: DataTable.RowSelected) -> None:
        self.dismiss(event.row_key.value)
