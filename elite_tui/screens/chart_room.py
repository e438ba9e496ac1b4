"""ChartRoom: a room with charts that are zoomed, moved and smoothed by the same keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from textual import on

from elite_tui.plot.smoothing import WEIGHTS
from elite_tui.plot.viewport import Viewport
from elite_tui.runs.curves import Look
from elite_tui.screens.room import Elite, RoomScreen
from elite_tui.widgets.chart import LineChart
from elite_tui.widgets.choice_bar import Choice


class ChartRoom(RoomScreen):
    """Subclasses draw their charts in `draw_charts`. Every chart of the room shows the same stretch."""

    def __init__(self, elite: Elite) -> None:
        super().__init__(elite)
        self.look = Look()

    def draw_charts(self) -> None:
        """Draws every chart with the present `look`."""
        raise NotImplementedError

    @property
    def charts(self) -> list[LineChart]:
        """The charts of the room."""
        return list(self.query(LineChart))

    def switches(self) -> list[Choice]:
        """The present look, for a line of choices."""
        zoomed = any(chart.viewport != Viewport() for chart in self.charts)
        smoothing = f"~{self.look.weight:g}" if self.look.weight else "raw"
        return [
            *([Choice(key="0", label="whole", action="whole")] if zoomed else []),
            Choice(key="+", label="zoom", action="zoom_in"),
            Choice(key="]", label=smoothing, action="smoother"),
            Choice(key="y", label="log" if self.look.log else "linear", action="log_axis"),
            Choice(key="x", label=self.look.x_kind, action="x_axis"),
        ]

    @on(LineChart.Moved)
    def _moved(self, message: LineChart.Moved) -> None:
        """All charts of the room show the same stretch."""
        self._share(message.viewport)

    def _steer(self, move: Callable[[LineChart], None]) -> None:
        """Moves the first chart that shows anything, and the others with it."""
        leader = next((chart for chart in self.charts if chart.picture.series), None)
        if leader is not None:
            move(leader)
            self._share(leader.viewport)

    def _share(self, viewport: Viewport) -> None:
        for chart in self.charts:
            chart.look(viewport)
        self.draw_charts()

    def _look(self, look: Look) -> None:
        self.look = look
        self.draw_charts()

    def action_zoom_in(self) -> None:
        """A shorter stretch, to the newest point."""
        self._steer(lambda chart: chart.zoom(inwards=True))

    def action_zoom_out(self) -> None:
        """A longer stretch."""
        self._steer(lambda chart: chart.zoom(inwards=False))

    def action_pan_left(self) -> None:
        """Earlier steps."""
        self._steer(lambda chart: chart.pan(rightwards=False))

    def action_pan_right(self) -> None:
        """Later steps."""
        self._steer(lambda chart: chart.pan(rightwards=True))

    def action_whole(self) -> None:
        """Everything."""
        self._share(Viewport())

    def action_log_axis(self) -> None:
        """Equal distances are equal factors, and back."""
        self._look(replace(self.look, log=not self.look.log))

    def action_x_axis(self) -> None:
        """Over steps, tokens or time."""
        self._look(replace(self.look, x_kind=self.look.next_axis))

    def action_smoother(self) -> None:
        """More smoothing; after the most, none."""
        self._look(replace(self.look, smoothing=(self.look.smoothing + 1) % len(WEIGHTS)))

    def action_rougher(self) -> None:
        """Less smoothing."""
        self._look(replace(self.look, smoothing=max(0, self.look.smoothing - 1)))
