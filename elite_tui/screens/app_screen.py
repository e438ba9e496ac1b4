"""Defines the layout shared by all screens: trail on top, content in the middle, keys at the bottom."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

from rich.cells import cell_len
from textual import on
from textual.containers import Horizontal, Vertical
from textual.events import Resize
from textual.screen import Screen
from textual.widgets import Button, Footer
from textual.widgets._footer import FooterKey

from elite_tui.messages import Changed
from elite_tui.state_part import Parts, StatePart
from elite_tui.widgets.field_row import FieldRow
from elite_tui.widgets.trail import Trail, TrailStep

if TYPE_CHECKING:
    from collections.abc import Iterable

    from textual.app import ComposeResult
    from textual.widget import Widget

    from elite_tui.generation.controller import GenerationController
    from elite_tui.runs.controller import RunController
    from elite_tui.state import AppState
    from elite_tui.wizard.controller import WizardController
    from elite_tui.wizard.draft_controller import DraftController

EVERYTHING = frozenset(StatePart)
HELP, QUIT = "help", "ask_quit"
KEY_PADDING = 3
"Columns of a key in the footer beside its name and its label."
TINY_BELOW, LOW_BELOW = 78, 24
"Columns and rows under which styles lay a screen out for 60×20, by the classes -tiny and -low."


class KeyBar(Footer):
    """Textual's footer with as many keys as the width holds whole; the help key, which lists all, stands at the end."""

    _composed_for = 0
    "Width that the shown keys were chosen for."

    def compose(self) -> ComposeResult:
        """Composes the keys that fit, those of the screen before the global ones; marks the help key for the style."""
        self._composed_for = self.app.size.width
        keys = [widget for widget in super().compose() if isinstance(widget, FooterKey)]
        gap = 0 if self.screen.has_class("-narrow") else 1
        room = self.app.size.width - sum(_width(key, gap) for key in keys if key.action in (HELP, QUIT)) - 1
        for key in keys:
            if key.action == HELP:
                key.add_class("-help")
            elif key.action != QUIT:
                room -= _width(key, gap)
                if room < 0:
                    continue
            yield key

    def on_resize(self) -> None:
        """Chooses the keys for another width."""
        if self._composed_for != self.app.size.width:
            self.refresh(recompose=True)


def _width(key: FooterKey, gap: int) -> int:
    return cell_len(key.key_display) + cell_len(key.description) + KEY_PADDING + gap


class Elite(Protocol):
    """Interface of the app for screens: state, controllers and navigation."""

    state: AppState
    drafting: DraftController
    controller: WizardController
    run_desk: RunController
    generation_desk: GenerationController

    def go(self, name: str) -> None:
        """Switches to a screen."""

    def step(self, offset: int) -> None:
        """Moves `offset` screens along the trail, once pending typing has reached the draft."""

    def begin_wizard(self) -> None:
        """Switches to the first screen."""

    def leave_runs(self) -> None:
        """Switches back to the screen from which the list of runs was opened."""

    def leave(self) -> None:
        """Closes the app."""


class Watching:
    """A screen that receives `Changed` for every change of the state."""


class AppScreen(Watching, Screen[None]):
    """One screen. Subclasses compose its content (`compose_body`) and draw it from the state (`show`)."""

    ROOM: ClassVar[str]

    def __init__(self, elite: Elite) -> None:
        super().__init__()
        self.elite = elite
        self.state = elite.state

    def compose(self) -> ComposeResult:
        """Composes trail, content and footer."""
        yield Trail(self.ROOM, has_run=self.state.run is not None, simulated=self.state.simulated)
        with Vertical(id="content"):
            yield from self.compose_body()
        yield KeyBar(show_command_palette=False)

    def compose_body(self) -> Iterable[Widget]:
        """Yields the screen's widgets."""
        raise NotImplementedError

    def show(self, changed: Parts) -> None:
        """Draws the widgets that depend on changed parts of the state; on entry, all parts count as changed."""
        raise NotImplementedError

    def on_mount(self) -> None:
        """Draws everything once."""
        self.show(EVERYTHING)

    @on(Resize)
    def _mark_size(self, event: Resize) -> None:
        """Marks small terminals for the styles, beside the breakpoints of the app."""
        self.set_class(event.size.width < TINY_BELOW, "-tiny")
        self.set_class(event.size.height < LOW_BELOW, "-low")

    @on(Changed)
    def _changed(self, message: Changed) -> None:
        if self.is_mounted:
            self.show({message.part})
            self.query_one(Trail).show(has_run=self.state.run is not None)

    @on(TrailStep.Chosen)
    def _screen_chosen(self, message: TrailStep.Chosen) -> None:
        self.elite.go(message.screen_name)


class WizardScreen(AppScreen):
    """A screen of the wizard. Its fields edit the draft; its buttons move along the trail."""

    def steps(self, *before: Widget, back: bool = True) -> Horizontal:
        """Returns the buttons to the neighbouring screens, after any others."""
        backwards = [Button("Back", id="back", compact=True)] if back else []
        forward = Button("Continue", id="forward", variant="primary", compact=True)
        return Horizontal(*before, *backwards, forward, classes="buttons")

    @on(FieldRow.Edited)
    def _edited(self, message: FieldRow.Edited) -> None:
        self.elite.drafting.edit(message.path, message.text)

    def action_forward(self) -> None:
        """Moves to the next screen."""
        self.elite.step(1)

    def action_back(self) -> None:
        """Moves to the previous screen."""
        self.elite.step(-1)

    @on(Button.Pressed, "#forward")
    def _forward_pressed(self) -> None:
        self.action_forward()

    @on(Button.Pressed, "#back")
    def _back_pressed(self) -> None:
        self.action_back()
