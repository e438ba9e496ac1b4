"""Shows the keys of a screen in its last line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.widgets import Footer
from textual.widgets._footer import FooterKey

if TYPE_CHECKING:
    from textual.app import ComposeResult

HELP = "help"


class KeyBar(Footer):
    """Textual's footer with the help key at the right end, where narrow terminals do not hide it."""

    def compose(self) -> ComposeResult:
        """Composes the keys; marks the help key for the style sheet."""
        for widget in super().compose():
            if isinstance(widget, FooterKey) and widget.action == HELP:
                widget.add_class("-help")
            yield widget
