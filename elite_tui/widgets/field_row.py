"""Shows one configuration field as a form row with label, control, and its description or problem.

Built from a FieldSpec, so that new fields of RunConfig appear in the wizard automatically.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from textual import on
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.message import Message
from textual.suggester import Suggester
from textual.widgets import Input, Select, Static

from elite_tui.format.figures import printable
from elite_tui.widgets.choice_field import ChoiceField
from elite_tui.widgets.line_input import LineInput
from elite_tui.widgets.text_block import TextBlock
from elite_tui.wizard.draft import text_of
from engine.config.description import FieldSpec

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from elite_tui.wizard.draft import Draft
    from engine.config import Problem


WHEN_EMPTY = {"output.model_name": "the repository's name"}
"What an empty text stands for."


def placeholder(spec: FieldSpec) -> str:
    """Returns the placeholder of an empty field: its default, or the meaning of an empty value."""
    if spec.default is None:
        return "automatic"
    if spec.default == []:
        return "none"
    if spec.path in WHEN_EMPTY:
        return WHEN_EMPTY[spec.path]
    return text_of(spec.default)


def choices_of(spec: FieldSpec) -> tuple[str, ...]:
    """Returns the allowed values of a field; empty for free text."""
    return ("true", "false") if spec.type is bool else spec.choices


class FieldRow(Vertical):
    """A field of the draft. Posts every edit at once; its owner sets its problem."""

    class Edited(Message):
        """The field's text changed, or is reported for the first time."""

        def __init__(self, path: str, text: str) -> None:
            super().__init__()
            self.path, self.text = path, text

    def __init__(
        self, spec: FieldSpec, draft: Draft, *, label: str | None = None, suggester: Suggester | None = None
    ) -> None:
        super().__init__(id="field-" + spec.path.replace(".", "-"))
        self.spec = spec
        self._label = label or spec.path.partition(".")[2].replace("_", " ")
        self._suggester = suggester
        self._text = text_of(draft.get(spec.path)) if not draft.is_default(spec.path) else ""
        self._choice = text_of(draft.get(spec.path))
        self._placeholder = placeholder(spec)
        self._note = ""
        self._problem: Problem | None = None

    def compose(self) -> ComposeResult:
        """Composes label and control in one line, with the note below."""
        with Horizontal(classes="line"):
            yield Static(self._label, classes="label", markup=False)
            if choices := choices_of(self.spec):
                choice = self._choice if self._choice in choices else text_of(self.spec.default)
                options = [(name, name) for name in choices]
                if self.spec.optional:
                    options.insert(0, (placeholder(self.spec), ""))
                yield ChoiceField(options, value=choice, allow_blank=False, compact=True)
            else:
                yield LineInput(
                    self._text,
                    placeholder=self._placeholder,
                    compact=True,
                    suggester=self._suggester,
                    select_on_focus=False,
                )
        yield TextBlock(self._note_text(), classes="note")

    def on_mount(self) -> None:
        """Marks a field with a problem."""
        self._draw()

    @property
    def control(self) -> Input | Select[str]:
        """The focusable control."""
        return cast("Input | Select[str]", self.query_one("Input, Select"))

    def show(self, problem: Problem | None, note: str = "") -> None:
        """Sets the field's problem, or a note that replaces its description."""
        if (problem, note) != (self._problem, self._note):
            self._problem, self._note = problem, note
            if self.is_mounted:
                self._draw()

    def set_text(self, text: str) -> None:
        """Replaces the control's text."""
        control = self.control
        control.value = text if isinstance(control, Input) else text or text_of(self.spec.default)

    def set_placeholder(self, text: str) -> None:
        """Sets what an empty control shows; "" is its default."""
        self._placeholder = text or placeholder(self.spec)
        for control in self.query(Input):
            control.placeholder = self._placeholder

    def _draw(self) -> None:
        self.set_class(self._problem is not None, "-wrong")
        self.query_one(".note", TextBlock).update(self._note_text())

    def _note_text(self) -> Content:
        if self._problem is None:
            return Content(printable(self._note or self.spec.description))
        return Content.assemble(
            ("✗ ", "$text-error bold"),
            (printable(self._problem.problem), "$text-error"),
            (f"; {printable(self._problem.remedy)}", ""),
        )

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        event.stop()
        self.post_message(self.Edited(self.spec.path, event.value))

    @on(Select.Changed)
    def _chosen(self, event: Select.Changed) -> None:
        event.stop()
        self.post_message(self.Edited(self.spec.path, str(event.value)))

    def on_descendant_focus(self) -> None:
        """Scrolls the whole row into view, including its note."""
        self.scroll_visible(animate=False)
