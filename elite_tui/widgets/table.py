"""A table that also takes clicks while it has no columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.widgets import DataTable
from textual.widgets.data_table import CellType

if TYPE_CHECKING:
    from textual.events import Click


class Table(DataTable[CellType]):
    """A DataTable. Textual's own fails on a click on a heading that is not there, as in a table without columns."""

    def on_click(self, event: Click) -> None:
        """Ignores a click on a column that the table does not have, or no longer has."""
        if event.style.meta.get("column", -1) >= len(self.columns):
            event.prevent_default()
