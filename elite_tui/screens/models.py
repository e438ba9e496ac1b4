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

if TYPE_CHECKING:
    from textual.app import ComposeResult
    from textual.binding import BindingType

    from elite_tui.state import AppState
    from elite_tui.wizard.controller import WizardController
    from elite_tui.wizard.remedies import ModelOutlook

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

    def compose(self) -> ComposeResult:
        """Composes a row per model."""
        with Vertical(id="dialog") as dialog:
            dialog.border_title = "Models"
            dialog.border_subtitle = "enter chooses · esc closes"
            yield Static(id="about", markup=False)
            yield DataTable(id="models", cursor_type="row", cell_padding=1)
            yield Static(
                "A hub id or a local folder in Hugging Face format works too: type it into the model's field.",
                classes="muted",
                markup=False,
            )

    def on_mount(self) -> None:
        """Requests each model's tiers."""
        table = self.query_one(DataTable)
        for heading, from_width, figures in COLUMNS:
            if self.app.size.width >= from_width:
                table.add_column(Text(heading, justify="right" if figures else "left"), key=heading)
        table.loading = True
        self._controller.ask_models()
        self._show()

    @on(Changed)
    def _changed(self, message: Changed) -> None:
        if message.part is StatePart.MODELS:
            self._show()

    def _show(self) -> None:
        plans, fetched = self._state.shown_plans, self._state.models
        about = self.query_one("#about", Static)
        if fetched.error is not None:
            about.update(Content.assemble(("✗ ", "$text-error"), str(fetched.error)))
            self.query_one(DataTable).loading = False
            return
        if plans is None:
            about.update(
                Content.styled("the tiers are not planned yet: close this and correct what is wrong", "$muted")
            )
            self.query_one(DataTable).loading = False
            return
        words = Content.styled(f"on {machine_in_words(plans)}; predicted, not measured", "$muted")
        planning = "   planning each of them …" if fetched.loading else ""
        about.update(words.append(Content.styled(planning, "$text-accent")))
        if fetched.loading or fetched.value is None:
            return
        table = self.query_one(DataTable)
        table.loading = False
        table.clear()
        present = plans.spec.name
        for projection in fetched.value:
            cells = self._cells(projection, present)
            table.add_row(*(cells[str(column.key.value)] for column in table.ordered_columns), key=projection.spec.name)
        names = [projection.spec.name for projection in fetched.value]
        # Once the table knows its height: before, there is nowhere to scroll to.
        self.call_after_refresh(table.move_cursor, row=names.index(present) if present in names else 0)
        table.focus()

    def _cells(self, projection: ModelOutlook, present: str) -> dict[str, Text]:
        spec, best, highest = projection.spec, projection.recommended, projection.highest
        colours = self.app.theme_variables
        mark = "●" if spec.name == present else " "
        style = "" if highest is not None else colours["faint"]
        nothing = Text("✗ nothing fits", style=colours["error"])
        slow = Text("✓ slow", style=colours["warning"])
        tier = Text(f"★ tier {best.tier}, {context_in_words(best.context)}", style=colours["accent"]) if best else slow
        return {
            "model": Text(f"{mark} {spec.name}", style=style),
            "parameters": Text(parameters_in_words(spec.parameters), style=style, justify="right"),
            "trained to": Text(context_in_words(spec.max_context), style=style, justify="right"),
            "licence": Text(spec.licence, style=style),
            "recommended": tier if highest is not None else nothing,
            "an epoch": Text(duration_in_words(epoch_seconds(best)) if best else "-", style=style, justify="right"),
            "up to": Text(context_in_words(highest.context) if highest else "-", style=style, justify="right"),
        }

    @on(DataTable.RowSelected)
    def _row_selected(self, event: DataTable.RowSelected) -> None:
        self.dismiss(event.row_key.value)
