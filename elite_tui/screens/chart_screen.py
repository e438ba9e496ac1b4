"""Defines the base of screens with charts, which share the keys for zoom, pan and smoothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from textual import on

from elite_tui.plot.smoothing import WEIGHTS
from elite_tui.plot.viewport import Viewport
from elite_tui.runs.curves import Look
from elite_tui.screens.app_screen import AppScreen, Elite
from elite_tui.widgets.chart import LineChart
from elite_tui.widgets.choice_bar import Choice


class ChartScreen(AppScreen):
    """Base of screens with charts. Subclasses draw them in `draw_charts`; all charts show the same stretch."""

    def __init__(self, elite: Elite) -> None:
        super().__init__(elite)
        self.look = Look()

    def draw_charts(self) -> None:
        """Draws every chart with the current `look`."""
        raise NotImplementedError(f"{type(self).__name__} defines no draw_charts")

    @property
    def charts(self) -> list[LineChart]:
        """The screen's charts."""
        return list(self.query(LineChart))

    def switches(self) -> list[Choice]:
        """Returns the current chart settings for a choice bar."""
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
        """Applies one chart's viewport to all others."""
        self._share(message.viewport)

    def _steer(self, move: Callable[[LineChart], None]) -> None:
        """Moves the first non-empty chart, and the others with it."""
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
        """Zooms in on the newest point."""
        self._steer(lambda chart: chart.zoom(inwards=True))

    def action_zoom_out(self) -> None:
        """Zooms out."""
        self._steer(lambda chart: chart.zoom(inwards=False))

    def action_pan_left(self) -> None:
        """Pans to earlier steps."""
        self._steer(lambda chart: chart.pan(rightwards=False))

    def action_pan_right(self) -> None:
        """Pans to later steps."""
        self._steer(lambda chart: chart.pan(rightwards=True))

    def action_whole(self) -> None:
        """Shows the whole x axis."""
        self._share(Viewport())

    def action_log_axis(self) -> None:
        """Toggles the logarithmic y axis."""
        self._look(replace(self.look, log=not self.look.log))

    def action_x_axis(self) -> None:
        """Cycles the x axis through steps, tokens and time."""
        self._look(replace(self.look, x_kind=self.look.next_axis))

    def action_smoother(self) -> None:
        """Increases smoothing; wraps to none after the maximum."""
        self._look(replace(self.look, smoothing=(self.look.smoothing + 1) % len(WEIGHTS)))

    def action_rougher(self) -> None:
        """Decreases smoothing."""
        self._look(replace(self.look, smoothing=max(0, self.look.smoothing - 1)))
