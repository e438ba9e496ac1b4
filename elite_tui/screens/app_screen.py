"""Defines the layout shared by all screens: trail on top, content in the middle, keys at the bottom."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from textual import on
from textual.containers import Horizontal, Vertical
from textual.events import Resize, ScreenResume
from textual.screen import Screen
from textual.widgets import Button

from elite_tui.messages import Changed
from elite_tui.state_part import Parts, StatePart
from elite_tui.widgets.field_row import FieldRow
from elite_tui.widgets.key_bar import KeyBar
from elite_tui.widgets.trail import Trail, TrailStep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from textual.app import ComposeResult
    from textual.events import Key
    from textual.geometry import Size
    from textual.widget import Widget

    from elite_tui.generation.controller import GenerationController
    from elite_tui.runs.controller import RunController
    from elite_tui.state import AppState
    from elite_tui.wizard.controller import WizardController
    from elite_tui.wizard.draft_controller import DraftController

EVERYTHING = frozenset(StatePart)
TINY_BELOW, LOW_BELOW = 78, 24
"Columns and rows under which styles lay a screen out for 60×20, by the classes -tiny and -low."


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

    def keep_key(self, event: Key) -> bool:  # noqa: ARG002
        """Returns whether the screen keeps a key for a widget that is not mounted yet."""
        return False


class AppScreen(Watching, Screen[None]):
    """One screen. Subclasses compose its content (`compose_body`) and draw it from the state (`show`)."""

    ROOM: ClassVar[str]
    _entered = False

    def __init__(self, elite: Elite) -> None:
        super().__init__()
        self.elite = elite
        self.state = elite.state

    def compose(self) -> ComposeResult:
        """Composes trail, content and footer."""
        # Before the first layout, so that nothing is laid out and drawn for another size first.
        self._mark_size(self.app.size)
        yield Trail(self.ROOM, has_run=self.state.run is not None, simulated=self.state.simulated)
        with Vertical(id="content"):
            yield from self.compose_body()
        yield KeyBar()

    def compose_body(self) -> Iterable[Widget]:
        """Yields the screen's widgets."""
        raise NotImplementedError(f"{type(self).__name__} defines no compose_body")

    def show(self, changed: Parts) -> None:
        """Draws the widgets that depend on changed parts of the state; on entry, all parts count as changed."""
        raise NotImplementedError(f"{type(self).__name__} defines no show")

    def enter(self) -> None:
        """Focuses a widget and requests what the screen needs, once everything is drawn."""

    def on_mount(self) -> None:
        """Draws everything once. Subclasses override `enter`: Textual calls the `on_mount` of each class itself."""
        if self.children and not self.is_left:  # else it loses its widgets already: another key has left it
            self.show(EVERYTHING)
            self.enter()

    def on_screen_resume(self, event: ScreenResume) -> None:
        """Spares the first entry the styles, which mounting has just applied to every widget.

        All but a row's own for the field that is focused in it, which was mounted after the row.
        """
        event.refresh_styles = event.refresh_styles and self._entered  # Textual spares those below a dialog
        self._entered = True
        for node in self.focused.ancestors if self.focused is not None else ():
            if isinstance(node, FieldRow):
                node.update_node_styles()

    @on(Resize)
    def _resized(self, event: Resize) -> None:
        self._mark_size(event.size)

    def _mark_size(self, size: Size) -> None:
        """Marks the terminal's size for the styles: the breakpoints of the app, and those of small terminals."""
        marks = {"-tiny": size.width < TINY_BELOW, "-low": size.height < LOW_BELOW}
        breakpoints = ((self.app.HORIZONTAL_BREAKPOINTS, size.width), (self.app.VERTICAL_BREAKPOINTS, size.height))
        for steps, cells in breakpoints:
            reached = max((at for at, _ in steps or [] if cells >= at), default=0)
            marks |= {name: at == reached for at, name in steps or []}
        self.update_classes(marks, animate=False)

    @property
    def is_left(self) -> bool:
        """Whether the app has gone to another screen, and this one loses its widgets."""
        return self not in self.app.screen_stack

    def call_after_refresh(self, callback: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
        """Calls back after the next refresh, unless the screen has been left by then."""
        return super().call_after_refresh(lambda: None if self.is_left else callback(*args, **kwargs))

    @on(Changed)
    def _changed(self, message: Changed) -> None:
        if self.is_mounted and not self.is_left:
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
