"""RoomScreen: what all rooms share: the trail on top, the room in the middle, the keys at the bottom."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from textual import on
from textual.containers import Vertical
from textual.screen import Screen

from elite_tui.messages import Changed
from elite_tui.widgets.key_bar import KeyBar
from elite_tui.widgets.trail import Trail

if TYPE_CHECKING:
    from collections.abc import Iterable

    from textual.app import ComposeResult
    from textual.widget import Widget

    from elite_tui.app import EliteApp
    from elite_tui.state import AppState


class Watching:
    """A screen that is told of every change of the state, with `Changed`."""


class RoomScreen(Watching, Screen[None]):
    """One room. Subclasses say what is in it (`compose_room`) and draw it from the state (`show`)."""

    ROOM: ClassVar[str]

    @property
    def elite(self) -> EliteApp:
        """The app."""
        return cast("EliteApp", self.app)

    @property
    def state(self) -> AppState:
        """What there is to draw."""
        return self.elite.state

    def compose(self) -> ComposeResult:
        """Trail, room, footer."""
        yield Trail(self.ROOM)
        with Vertical(id="room"):
            yield from self.compose_room()
        yield KeyBar(show_command_palette=False)

    def compose_room(self) -> Iterable[Widget]:
        """The room's widgets."""
        raise NotImplementedError

    def show(self, what: str) -> None:
        """Draws what depends on one attribute of the state; "all" on entering."""
        raise NotImplementedError

    def on_mount(self) -> None:
        """Draws everything once."""
        self.show("all")

    @on(Changed)
    def _changed(self, message: Changed) -> None:
        if self.is_mounted:
            self.show(message.what)
            self.query_one(Trail).refresh_steps()

    def action_forward(self) -> None:
        """To the next room."""
        self.elite.step(1)

    def action_back(self) -> None:
        """To the room before."""
        self.elite.step(-1)
