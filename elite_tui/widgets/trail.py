"""The trail: one line on top that says where in the wizard one is. Rooms can be clicked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.containers import Horizontal
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from elite_tui.rooms import ROOMS, TRAIL, Room

if TYPE_CHECKING:
    from textual.app import ComposeResult

DONE, HERE, AHEAD = "✓", "●", "○"
TITLES_FROM = 78
"Width from which on every room's title has its place; below it only that of the present room does."


class TrailStep(Static):
    """One room's place on the trail."""

    class Chosen(Message):
        """A room is to be entered."""

        def __init__(self, room: str) -> None:
            super().__init__()
            self.room = room

    def __init__(self, room: Room) -> None:
        super().__init__(markup=False)
        self.room = room
        self._drawn: tuple[str, bool, bool] | None = None

    def mark(self, mark: str, *, reachable: bool, titled: bool) -> None:
        """Draws the room's mark and title, if they changed: the trail must cost nothing while a run is watched."""
        if self._drawn == (mark, reachable, titled):
            return
        self._drawn = (mark, reachable, titled)
        self.set_class(mark == HERE, "-here")
        self.set_class(not reachable, "-closed")
        self.update(Content(f"{mark} {self.room.title}" if titled else mark))

    def on_click(self) -> None:
        """Says that the room is chosen."""
        self.post_message(self.Chosen(self.room.name))


class Trail(Horizontal):
    """All rooms of the wizard, those before the present one ticked.

    Args:
        room: The present one.
        has_run: Whether there is a run to show: without one the last two rooms are closed.
    """

    def __init__(self, room: str, *, has_run: bool) -> None:
        super().__init__()
        self._here = room
        self._has_run = has_run

    def compose(self) -> ComposeResult:
        """The product's name and the rooms; a room beside the trail shows only its own title."""
        yield Static("▲ Elite TUI", id="brand", markup=False)
        if self._here not in {room.name for room in TRAIL}:
            yield TrailStep(ROOMS[self._here])
            return
        for room in TRAIL:
            yield TrailStep(room)

    def on_mount(self) -> None:
        """Marks the rooms."""
        self._mark()

    def on_resize(self) -> None:
        """Another width has room for other titles."""
        self._mark()

    def show(self, *, has_run: bool) -> None:
        """Marks the rooms again."""
        self._has_run = has_run
        self._mark()

    def _mark(self) -> None:
        before = True
        for step in self.query(TrailStep):
            here = step.room.name == self._here
            before = before and not here
            mark = HERE if here else DONE if before else AHEAD
            titled = here or self.app.size.width >= TITLES_FROM
            step.mark(mark, reachable=self._has_run or not step.room.needs_run, titled=titled)
