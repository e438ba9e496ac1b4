"""Asks for confirmation of actions that cannot be undone. The safe answer has the focus."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Static

from elite_tui.widgets.line_input import LineInput

if TYPE_CHECKING:
    from textual.app import ComposeResult
    from textual.binding import BindingType


class ConfirmScreen(ModalScreen[str]):
    """A question with a few answers; escape gives the last one."""

    CSS_PATH = "confirm.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        ("escape", "cancel", "Cancel"),
        ("left", "app.focus_previous", "Previous"),
        ("right", "app.focus_next", "Next"),
    ]

    def __init__(self, question: str, explanation: str, answers: tuple[tuple[str, str], ...], *, safe: str) -> None:
        super().__init__()
        self._question = question
        self._explanation = explanation
        self._answers = answers
        self._safe = safe

    def compose(self) -> ComposeResult:
        """Composes question, explanation, and a button per answer."""
        with Vertical(id="dialog"):
            yield Static(self._question, classes="title", markup=False)
            yield Static(self._explanation, classes="muted", markup=False)
            with Horizontal(classes="buttons"):
                for name, label in self._answers:
                    yield Button(label, id=name, compact=True, variant="primary" if name == self._safe else "default")

    def on_mount(self) -> None:
        """Focuses the safe answer."""
        self.query_one(f"#{self._safe}", Button).focus()

    @on(Button.Pressed)
    def _answered(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id)

    def action_cancel(self) -> None:
        """Gives the last answer, which changes nothing."""
        self.dismiss(self._answers[-1][0])


class TypedConfirmScreen(ModalScreen[str]):
    """Requires a typed word before permanent deletion. Answers "agreed", or None."""

    CSS_PATH = "confirm.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [("escape", "dismiss", "Cancel")]

    def __init__(self, question: str, explanation: str, word: str, label: str) -> None:
        super().__init__()
        self._question = question
        self._explanation = explanation
        self._word = word
        self._label = label

    def compose(self) -> ComposeResult:
        """Composes question, explanation, entry and buttons."""
        with Vertical(id="dialog"):
            yield Static(self._question, classes="title", markup=False)
            yield Static(self._explanation, classes="muted", markup=False)
            yield Static(Content.assemble("Type ", (self._word, "bold $text-accent"), " to confirm."), id="ask")
            yield LineInput(id="word", compact=True)
            with Horizontal(classes="buttons"):
                yield Button(self._label, id="agreed", compact=True, variant="error", disabled=True)
                yield Button("Keep", id="cancel", compact=True, variant="primary")

    def on_mount(self) -> None:
        """Focuses the entry."""
        self.query_one(Input).focus()

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        self.query_one("#agreed", Button).disabled = event.value.strip() != self._word

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        if event.value.strip() == self._word:
            self.dismiss("agreed")

    @on(Button.Pressed)
    def _answered(self, event: Button.Pressed) -> None:
        self.dismiss("agreed" if event.button.id == "agreed" else None)


class QuitScreen(ConfirmScreen):
    """Question on quitting during a run."""

    def __init__(self) -> None:
        super().__init__(
            "A run is under way",
            "Detached, it goes on without this terminal; `elite-tui monitor` finds it again.",
            (("detach", "Detach"), ("stop", "Stop and save"), ("cancel", "Stay")),
            safe="detach",
        )
