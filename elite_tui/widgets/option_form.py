"""Generates a form with every configuration field that the first screen does not ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.containers import VerticalScroll
from textual.widgets import Static

from elite_tui.widgets.field_row import FieldRow
from engine.config import fields

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from textual.app import ComposeResult

    from elite_tui.wizard.draft import Draft
    from engine.config import Problem

SECTION_TITLES = {
    "training": "Training",
    "stream": "Streamed step",
    "lora": "Adapter (LoRA)",
    "model": "Model",
    "data": "Data",
    "checkpoint": "Checkpoints",
    "output": "Output",
}
"Sections in display order; an unlisted one comes last, under its own name."


class OptionForm(VerticalScroll):
    """One row per field, by section.

    Args:
        draft: The draft that the form edits.
        problems: The draft's problems by field.
        left_out: Fields shown elsewhere.
        id: The widget's id.
    """

    def __init__(
        self,
        draft: Draft,
        problems: Mapping[str, Problem],
        left_out: Collection[str],
        *,
        id: str,  # noqa: A002
    ) -> None:
        super().__init__(id=id, can_focus=False)
        self._draft = draft
        self._problems = problems
        self._left_out = left_out

    def compose(self) -> ComposeResult:
        """Composes the rows."""
        shown = [spec for spec in fields() if spec.path not in self._left_out]
        order = [*SECTION_TITLES, *(spec.section for spec in shown)]
        for section in dict.fromkeys(order):
            specs = [spec for spec in shown if spec.section == section]
            if specs:
                yield Static(SECTION_TITLES.get(section, section), classes="section", markup=False)
            for spec in specs:
                yield FieldRow(spec, self._draft)

    def on_mount(self) -> None:
        """Focuses the first field with a problem, else the first field."""
        self.show(self._problems)
        wrong = list(self.query("FieldRow.-wrong").results(FieldRow))
        (wrong[0] if wrong else self.query(FieldRow).first()).control.focus()

    def show(self, problems: Mapping[str, Problem]) -> None:
        """Draws problems beside their fields, and marks non-default values."""
        for row in self.query(FieldRow):
            row.show(problems.get(row.spec.path))
            row.set_class(not self._draft.is_default(row.spec.path), "-changed")

    def reset_field(self) -> None:
        """Resets the focused field to its default."""
        row = next((row for row in self.query(FieldRow) if row.has_focus_within), None)
        if row is not None:
            row.set_text("")

    def next_problem(self) -> None:
        """Focuses the next field with a problem, from the top again after the last."""
        rows = list(self.query(FieldRow))
        here = next((index for index, row in enumerate(rows) if row.has_focus_within), -1)
        for row in rows[here + 1 :] + rows[: here + 1]:
            if row.has_class("-wrong"):
                row.control.focus()
                return
