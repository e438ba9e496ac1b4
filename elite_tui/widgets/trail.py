"""Shows the position in the wizard on the top line. Screens can be clicked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.containers import Horizontal
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from elite_tui.screen_list import SCREENS, TRAIL, ScreenEntry

if TYPE_CHECKING:
    from textual.app import ComposeResult

DONE, HERE, AHEAD = "✓", "●", "○"
TITLES_FROM = 78
"Width from which every screen's title fits; below it, only the current one is shown."
BADGE = 11
"Width of the badge of a simulated machine, with its padding."


class TrailStep(Static):
    """One screen's step on the trail."""

    class Chosen(Message):
        """The user chose a screen."""

        def __init__(self, screen_name: str) -> None:
            super().__init__()
            self.screen_name = screen_name

    def __init__(self, entry: ScreenEntry) -> None:
        super().__init__(markup=False)
        self.entry = entry
        self._drawn: tuple[str, bool, bool] | None = None

    def mark(self, mark: str, *, reachable: bool, titled: bool) -> None:
        """Draws the screen's mark and title if they changed: the trail must cost nothing while a run is watched."""
        if self._drawn == (mark, reachable, titled):
            return
        self._drawn = (mark, reachable, titled)
        self.set_class(mark == HERE, "-here")
        self.set_class(not reachable, "-closed")
        self.update(Content(f"{mark} {self.entry.title}" if titled else mark))

    def on_click(self) -> None:
        """Posts the chosen screen."""
        self.post_message(self.Chosen(self.entry.name))


class Trail(Horizontal):
    """All screens of the wizard, those before the current one ticked.

    Args:
        screen_name: Name of the current screen.
        has_run: Whether a run is open; without one the last two screens are closed.
        simulated: Card whose plans are shown instead of this machine's; None for this machine.
    """

    def __init__(self, screen_name: str, *, has_run: bool, simulated: str | None = None) -> None:
        super().__init__()
        self._here = screen_name
        self._has_run = has_run
        self._simulated = simulated

    def compose(self) -> ComposeResult:
        """Composes the product's name and the screens; a screen outside the trail shows only its own title."""
        yield Static("▲ Elite TUI", id="brand", markup=False)
        if self._simulated is not None:
            yield Static("SIMULATED", id="simulated", markup=False)
        if self._here not in {entry.name for entry in TRAIL}:
            yield TrailStep(SCREENS[self._here])
            return
        for entry in TRAIL:
            yield TrailStep(entry)

    def on_mount(self) -> None:
        """Marks the screens."""
        self._mark()

    def on_resize(self) -> None:
        """Fits the titles to the new width."""
        self._mark()

    def show(self, *, has_run: bool) -> None:
        """Marks the screens again."""
        self._has_run = has_run
        self._mark()

    def _mark(self) -> None:
        before = True
        for step in self.query(TrailStep):
            here = step.entry.name == self._here
            before = before and not here
            mark = HERE if here else DONE if before else AHEAD
            room = self.app.size.width - (BADGE if self._simulated is not None else 0)
            titled = here or room >= TITLES_FROM
            step.mark(mark, reachable=self._has_run or not step.entry.needs_run, titled=titled)
