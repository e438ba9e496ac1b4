"""A level against its limit, in one line: name, bar, figures and share. Unknown levels say n/a."""

from __future__ import annotations

from textual.content import Content
from textual.widget import Widget

from elite_tui.figures import NOT_AVAILABLE, percent_in_words

_EIGHTHS = " ▏▎▍▌▋▊▉"
TIGHT = 0.9
"Share above which a gauge says 'tight' as well as changing colour."


def bar(share: float | None, width: int) -> str:
    """A bar of `width` cells, filled to an eighth of a cell. An unknown share is a dotted line."""
    if share is None:
        return "┄" * width
    eighths = round(min(1.0, max(0.0, share)) * width * 8)
    full, part = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[part] if part else "")).ljust(width)


class Gauge(Widget):
    """One gauge. `show` sets the level; figures are passed as text, so that a gauge knows no units."""

    can_focus = False

    def __init__(self, label: str, *, label_width: int = 9, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._label = label
        self._label_width = label_width
        self._share: float | None = None
        self._figures = NOT_AVAILABLE

    def show(self, share: float | None, figures: str) -> None:
        """Replaces the level (a share of 1, None where unknown) and the figures beside it."""
        if (share, figures) != (self._share, self._figures):
            self._share, self._figures = share, figures
            self.refresh()

    def render(self) -> Content:
        """One line, or two where the space is narrow."""
        width = self.content_size.width
        tight = self._share is not None and self._share >= TIGHT
        style = "$error" if tight else "$primary"
        share = percent_in_words(self._share) + ("!" if tight else "")
        figures = f"{self._figures}  {share:>5}" if self._share is not None else self._figures
        label = f"{self._label:<{self._label_width}} "
        bar_width = width - len(label) - len(figures) - 2
        if bar_width >= 6:
            return Content.assemble(
                (label, "$text-muted"),
                Content.styled(bar(self._share, bar_width), f"{style} on $surface"),
                f"  {figures}",
            )
        bar_width = max(4, width - len(label))
        return Content.assemble(
            (label, "$text-muted"), figures[: width - len(label)], "\n", Content.styled(bar(self._share, width), style)
        )
