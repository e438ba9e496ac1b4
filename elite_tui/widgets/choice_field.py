"""A field with a list of values, which may be left before it is mounted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.widgets import Select

if TYPE_CHECKING:
    from textual.events import Mount


class ChoiceField(Select[str]):
    """A Select. Textual's own fails if its screen is left, and its parts removed, while it is being mounted."""

    def on_mount(self, event: Mount) -> None:
        """Leaves out the rest of the mounting if there are no parts to fill."""
        if not self.children:
            event.prevent_default()
