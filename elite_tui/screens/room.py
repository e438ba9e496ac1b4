"""RoomScreen: what all rooms share: the trail on top, the room in the middle, the keys at the bottom."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

from textual import on
from textual.containers import Horizontal, Vertical
from textual.screen import Screen
from textual.widgets import Button

from elite_tui.messages import Changed
from elite_tui.state_part import Parts, StatePart
from elite_tui.widgets.field_row import FieldRow
from elite_tui.widgets.key_bar import KeyBar
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


class Elite(Protocol):
    """What rooms know of the app: its state, its controllers, and the way to other rooms."""

    state: AppState
    drafting: DraftController
    controller: WizardController
    run_desk: RunController
    generation_desk: GenerationController

    def go(self, name: str) -> None:
        """Enters a room."""

    def step(self, offset: int) -> None:
        """Enters the room so many steps along the trail, with what was typed in this one."""

    def begin_wizard(self) -> None:
        """Enters the first room."""

    def leave(self) -> None:
        """Closes the app."""


class Watching:
    """A screen that is told of every change of the state, with `Changed`."""


class RoomScreen(Watching, Screen[None]):
    """One room. Subclasses say what is in it (`compose_room`) and draw it from the state (`show`)."""

    ROOM: ClassVar[str]

    def __init__(self, elite: Elite) -> None:
        super().__init__()
        self.elite = elite
        self.state = elite.state

    def compose(self) -> ComposeResult:
        """Trail, room, footer."""
        yield Trail(self.ROOM, has_run=self.state.run is not None)
        with Vertical(id="room"):
            yield from self.compose_room()
        yield KeyBar(show_command_palette=False)

    def compose_room(self) -> Iterable[Widget]:
        """The room's widgets."""
        raise NotImplementedError

    def show(self, changed: Parts) -> None:
        """Draws what depends on the parts of the state that changed; on entering, on all of them."""
        raise NotImplementedError

    def on_mount(self) -> None:
        """Draws everything once."""
        self.show(EVERYTHING)

    @on(Changed)
    def _changed(self, message: Changed) -> None:
        if self.is_mounted:
            self.show({message.part})
            self.query_one(Trail).show(has_run=self.state.run is not None)

    @on(TrailStep.Chosen)
    def _room_chosen(self, message: TrailStep.Chosen) -> None:
        self.elite.go(message.room)


class WizardRoom(RoomScreen):
    """A room of the wizard: its fields go into the draft, its buttons along the trail."""

    def steps(self, *before: Widget, back: bool = True) -> Horizontal:
        """The buttons that lead to the rooms beside, after others."""
        backwards = [Button("Back", id="back", compact=True)] if back else []
        forward = Button("Continue", id="forward", variant="primary", compact=True)
        return Horizontal(*before, *backwards, forward, classes="buttons")

    @on(FieldRow.Edited)
    def _edited(self, message: FieldRow.Edited) -> None:
        self.elite.drafting.edit(message.path, message.text)

    def action_forward(self) -> None:
        """To the next room."""
        self.elite.step(1)

    def action_back(self) -> None:
        """To the room before."""
        self.elite.step(-1)

    @on(Button.Pressed, "#forward")
    def _forward_pressed(self) -> None:
        self.action_forward()

    @on(Button.Pressed, "#back")
    def _back_pressed(self) -> None:
        self.action_back()
