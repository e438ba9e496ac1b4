"""Shows text that is drawn again only where it has changed."""

from __future__ import annotations

from textual.content import Content
from textual.visual import VisualType
from textual.widgets import Static


class TextBlock(Static):
    """A Static without markup. An update with the same text and styles costs no layout and no drawing.

    Screens draw themselves for every change of the state, of which few change a given text.
    """

    def __init__(self, text: VisualType = "", *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002
        super().__init__(text, id=id, classes=classes, markup=False)

    def update(self, content: VisualType = "", *, layout: bool = True) -> None:
        """Shows another text."""
        before = self.content
        if isinstance(content, Content) and isinstance(before, Content) and content.is_same(before):
            return
        if isinstance(content, str) and isinstance(before, str) and content == before:
            return
        due = self._layout_required
        super().update(content, layout=layout)
        if layout and due:
            # Textual counts one change until this widget is idle. The screen may have been laid out in between, and
            # the row that holds this text would keep the height of its former one.
            self._layout_updates += 1
