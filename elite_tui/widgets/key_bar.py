"""KeyBar: the keys of a room in its last line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.widgets import Footer
from textual.widgets._footer import FooterKey

if TYPE_CHECKING:
    from textual.app import ComposeResult

HELP = "help"


class KeyBar(Footer):
    """Textual's footer, with the key for help at its right end, where no lack of room hides it."""

    def compose(self) -> ComposeResult:
        """The keys, the one for help marked for the style sheet."""
        for widget in super().compose():
            if isinstance(widget, FooterKey) and widget.action == HELP:
                widget.add_class("-help")
            yield widget
