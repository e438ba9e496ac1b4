"""Shows the dataset: included and excluded files, with reasons, and the windows."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Button

from elite_tui.actions import bindings_for, screen_actions
from elite_tui.format import data as data_words
from elite_tui.format.figures import printable
from elite_tui.format.layout import line_bar
from elite_tui.screens.app_screen import EVERYTHING, WizardScreen
from elite_tui.state_part import Parts, StatePart
from elite_tui.widgets.field_row import FieldRow
from elite_tui.widgets.text_block import TextBlock
from engine.config import field_spec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from textual.binding import BindingType
    from textual.widget import Widget

LABELS = {
    "data.secrets": "secrets",
    "data.near_duplicates": "duplicates",
    "data.documents": "documents",
    "data.packing": "packing",
    "data.order": "order",
}
"The most used settings; the options form has the rest."
ALLOWED = "data.allowed_secrets"
"Fingerprints of findings that are trained on as they are; asked for below what was found."
DRAWN_FROM = frozenset({StatePart.DRAFT, StatePart.DATA, StatePart.READING, StatePart.TIERS})
PARTS = ("in", "out", "windows", "secrets", "twins")
_BAR = 30


class DataScreen(WizardScreen):
    """Screen of the dataset."""

    ROOM = "data"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings_for(screen_actions(ROOM))]
    CSS_PATH = "data.tcss"

    def compose_body(self) -> Iterable[Widget]:
        """Composes the settings, the summary, and five sections in two columns."""
        with Horizontal(id="asked"):
            for path, label in LABELS.items():
                yield FieldRow(field_spec(path), self.state.draft, label=label)
        yield TextBlock(id="summary")
        with VerticalScroll(id="report", can_focus=True):
            with Vertical(id="left"):
                yield TextBlock(id="in", classes="part")
                yield TextBlock(id="windows", classes="part")
            with Vertical(id="right"):
                yield TextBlock(id="out", classes="part")
                yield TextBlock(id="secrets", classes="part")
                yield FieldRow(field_spec(ALLOWED), self.state.draft, label="no secrets:")
                yield TextBlock(id="twins", classes="part")
            yield TextBlock(id="footnote")
        yield self.steps(Button("Stop reading", id="stop", compact=True))

    def enter(self) -> None:
        """Builds the dataset on entry, unless it exists for these settings."""
        self.query_one("#report").focus()
        if self.state.data.value is None and not self.state.data.loading:
            self.elite.controller.read_data()

    def show(self, changed: Parts) -> None:
        """Draws the progress of reading, or the report."""
        if changed.isdisjoint(DRAWN_FROM):
            return
        state = self.state
        problems = state.problems()
        for row in self.query(FieldRow):
            row.show(problems.get(row.spec.path))
        self.query_one("#summary", TextBlock).update(self._summary())
        self.query_one("#stop").display = state.data.loading
        self.refresh_bindings()
        report = state.data.value
        self.query_one("#report").set_class(report is None, "-empty")
        if report is None or changed == {StatePart.READING}:
            return
        draft = state.draft
        self.query_one("#field-data-allowed_secrets").display = bool(report.secrets or draft.get(ALLOWED))
        plans = state.tiers.value
        tier = plans.choice.plan.tier if plans is not None and plans.choice is not None else None
        left, right = (max(30, self.query_one(name).content_size.width - 1) for name in ("#left", "#right"))
        packing = draft.get("data.packing") is True
        parts = {
            "in": data_words.what_is_in(report, left),
            "out": data_words.what_is_out(report, right),
            "windows": data_words.windows(report, tier, left, packing=packing),
            "secrets": data_words.secrets(report, str(draft.get("data.secrets")), right),
            "twins": data_words.twins(report, right),
            "footnote": data_words.footnote(report),
        }
        for name, content in parts.items():
            self.query_one(f"#{name}", TextBlock).update(content)

    def _summary(self) -> Content:
        """Formats the dataset in one line, the progress of reading, or the error."""
        state = self.state
        if state.data.loading:
            reading = state.reading
            share = reading.share if reading is not None else None
            words = reading.words if reading is not None else "beginning"
            return Content.assemble(
                ("reading … ", "$text-accent"), (line_bar(share, _BAR), "$primary"), f" {printable(words)}"
            )
        if state.data.error is not None:
            return Content.assemble(("✗ ", "$text-error"), printable(str(state.data.error)))
        if state.data.value is None:
            return Content.styled("correct what is wrong, then f5 reads the repository", "$muted")
        return data_words.summary(state.data.value)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002
        """Allows stopping only during a reading."""
        return self.state.data.loading if action == "stop_reading" else True

    def action_stop_reading(self) -> None:
        """Stops the reading; files read so far stay cached."""
        self.elite.controller.stop_reading()

    def action_rescan(self) -> None:
        """Reads again."""
        self.elite.controller.read_data()

    @on(Button.Pressed, "#stop")
    def _stop_pressed(self) -> None:
        self.action_stop_reading()

    def on_resize(self) -> None:
        """Wraps the sections to the new width."""
        self.call_after_refresh(self.show, EVERYTHING)
