"""Options: every field of the configuration that no other room sets, made from its definition."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.widgets import Button, Input, Static

from elite_tui.actions import bindings_for, room_actions
from elite_tui.screens.project import LABELS as PROJECT_FIELDS
from elite_tui.screens.room import RoomScreen
from elite_tui.widgets.field_row import FieldRow
from engine.config import fields

if TYPE_CHECKING:
    from collections.abc import Iterable

    from textual.binding import BindingType
    from textual.widget import Widget

SECTION_TITLES = {
    "training": "Training",
    "lora": "Adapter (LoRA)",
    "model": "Model",
    "data": "Data",
    "checkpoint": "Checkpoints",
    "output": "Output",
}
"Sections in the order in which they are shown; one that is not named here comes last, under its own name."


class OptionsScreen(RoomScreen):
    """The room of the configuration's details."""

    ROOM = "options"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings_for(room_actions(ROOM))]
    CSS_PATH = "options.tcss"

    def compose_room(self) -> Iterable[Widget]:
        """One row a field, by section."""
        yield Static(id="verdict", markup=False)
        with VerticalScroll(id="form", can_focus=False):
            shown = [spec for spec in fields() if spec.path not in PROJECT_FIELDS]
            order = [*SECTION_TITLES, *(spec.section for spec in shown)]
            for section in dict.fromkeys(order):
                specs = [spec for spec in shown if spec.section == section]
                if specs:
                    yield Static(SECTION_TITLES.get(section, section), classes="section", markup=False)
                for spec in specs:
                    yield FieldRow(spec, self.state.draft)
        with Horizontal(classes="buttons"):
            yield Button("Back", id="back", compact=True)
            yield Button("Continue", id="forward", variant="primary", compact=True)

    def on_mount(self) -> None:
        """The cursor stands in the first field, or in the first that has a problem."""
        super().on_mount()
        wrong = list(self.query("FieldRow.-wrong").results(FieldRow))
        (wrong[0] if wrong else self.query(FieldRow).first()).control.focus()

    def show(self, what: str) -> None:
        """Draws problems beside their fields."""
        if what not in ("all", "draft", "repository", "tiers", "preflight"):
            return
        problems = self.state.problems()
        draft = self.state.draft
        for row in self.query(FieldRow):
            row.show(problems.get(row.spec.path))
            row.set_class(not draft.is_default(row.spec.path), "-changed")
        changed = sum(not draft.is_default(row.spec.path) for row in self.query(FieldRow))
        here = sum(row.spec.path in problems for row in self.query(FieldRow))
        if here:
            verdict = Content.styled(f"✗ {here} to correct", "$text-error bold")
        else:
            verdict = Content.styled("✓ all fields are valid", "$text-success")
        verdict = verdict.append(
            Content.styled(f"   {changed} changed from its default" if changed else "   all defaults", "$muted")
        )
        self.query_one("#verdict", Static).update(verdict)

    @on(Button.Pressed, "#forward")
    def _forward_pressed(self) -> None:
        self.action_forward()

    @on(Button.Pressed, "#back")
    def _back_pressed(self) -> None:
        self.action_back()

    @on(Input.Submitted)
    def _submitted(self) -> None:
        self.app.action_focus_next()

    def action_reset_field(self) -> None:
        """The field under the cursor back to its default."""
        focused = self.focused
        row = next((node for node in focused.ancestors if isinstance(node, FieldRow)), None) if focused else None
        if row is not None:
            row.set_text("")

    def action_next_problem(self) -> None:
        """To the next field with a problem, from the top again after the last."""
        rows = list(self.query(FieldRow))
        here = next((index for index, row in enumerate(rows) if row.has_focus_within), -1)
        for row in rows[here + 1 :] + rows[: here + 1]:
            if row.has_class("-wrong"):
                row.control.focus()
                return
        self.notify("no problems here", timeout=2)
