"""Shows a line of choices with tabs on the left and switches on the right. Each names its key and can be clicked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from textual.content import Content

from elite_tui.widgets.diff_widget import DiffWidget

if TYPE_CHECKING:
    from textual.events import Click


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One entry of the line, and its screen action."""

    label: str
    action: str = ""
    """Action of the screen; "" for a plain label."""
    key: str = ""
    chosen: bool = False


GAP = 2


class ChoiceBar(DiffWidget):
    """Shows choices and runs the action of a clicked one. Drops switches on the right that do not fit."""

    can_focus = False

    def __init__(self, *, id: str) -> None:  # noqa: A002
        super().__init__(id=id)
        self._left: tuple[Choice, ...] = ()
        self._right: tuple[Choice, ...] = ()
        self._places: list[tuple[range, Choice]] = []

    def show(self, left: Sequence[Choice], right: Sequence[Choice] = ()) -> None:
        """Replaces the choices."""
        if (tuple(left), tuple(right)) != (self._left, self._right):
            self._left, self._right = tuple(left), tuple(right)
            self.repaint()

    def paint(self, width: int, height: int) -> list[Content]:  # noqa: ARG002
        """Paints the line."""
        self._places = []
        line = self._join(self._left, 0)
        right = list(self._right)
        while right and line.cell_length + 2 * GAP + _width(right) > width:
            right.pop(0)
        if not right:
            return [line]
        start = width - _width(right)
        line = line.append(" " * (start - line.cell_length))
        return [line.append(self._join(right, start))]

    def _join(self, choices: Sequence[Choice], start: int) -> Content:
        line = Content("")
        for index, choice in enumerate(choices):
            if index:
                line = line.append(" " * GAP)
            words = _words(choice)
            begin = start + line.cell_length
            self._places.append((range(begin, begin + words.cell_length), choice))
            line = line.append(words)
        return line

    async def on_click(self, event: Click) -> None:
        """Runs the action of the choice under the mouse."""
        for place, choice in self._places:
            if event.x in place and choice.action:
                event.stop()
                await self.screen.run_action(choice.action)
                return


def _words(choice: Choice) -> Content:
    # The chosen one is underlined too: without colours, bold alone is easily missed.
    label = Content.styled(choice.label, "bold underline $text-primary" if choice.chosen else "$muted")
    return Content.assemble((choice.key, "$text-accent"), " ", label) if choice.key else label


def _width(choices: Sequence[Choice]) -> int:
    return sum(_words(choice).cell_length for choice in choices) + GAP * (len(choices) - 1)
