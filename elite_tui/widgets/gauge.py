"""Shows a level against its limit in one line: name, bar, figures and share. Unknown levels show n/a."""

from __future__ import annotations

from textual.content import Content
from textual.widget import Widget

from elite_tui.format.figures import NOT_AVAILABLE, percent_in_words
from elite_tui.format.layout import TIGHT, bar

LABEL_WIDTH = 8
SHARE_WIDTH = 5
SHORTEST_BAR = 6


class Gauge(Widget):
    """One gauge. `show` sets the level; figures are text, so a gauge has no units.

    Args:
        label: Name of the measure, at most LABEL_WIDTH cells.
        figures_width: Cells reserved for the figures, so that the bars of several gauges are aligned.
    """

    can_focus = False

    def __init__(self, label: str, *, figures_width: int) -> None:
        super().__init__()
        self._label = label
        self._figures_width = figures_width
        self._share: float | None = None
        self._figures = NOT_AVAILABLE

    def show(self, share: float | None, figures: str) -> None:
        """Replaces the level (a share from 0 to 1, None if unknown) and the figures beside it."""
        if (share, figures) != (self._share, self._figures):
            self._share, self._figures = share, figures
            self.refresh()

    @property
    def bar_width(self) -> int:
        """Cells of the bar. If the figures do not fit, the bar takes their place."""
        free = self.content_size.width - LABEL_WIDTH - SHARE_WIDTH - 2
        with_figures = free - self._figures_width - 1
        return with_figures if with_figures >= SHORTEST_BAR else max(1, free)

    def render(self) -> Content:
        """Renders label, bar, share and figures in one line."""
        width = self.bar_width
        tight = self._share is not None and self._share >= TIGHT
        style = "$error" if tight else "$primary"
        share = percent_in_words(self._share) + ("!" if tight else "") if self._share is not None else NOT_AVAILABLE
        line = Content.assemble(
            (f"{self._label:<{LABEL_WIDTH}} ", "$muted"),
            Content.styled(bar(self._share, width), f"{style} on $surface"),
            f"{share:>{SHARE_WIDTH}}",
        )
        if self.content_size.width - line.cell_length > self._figures_width:
            line = line.append(Content.styled(f" {self._figures:>{self._figures_width}}", "$foreground"))
        return line
