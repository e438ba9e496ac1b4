"""A table of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.widgets import DataTable
from textual.widgets.data_table import CellType

if TYPE_CHECKING:
    from textual.events import Click
    from textual.widgets.data_table import CellKey


class Table(DataTable[CellType]):
    """A DataTable whose home and end keys go to the first and last row, as its cursor is a row."""

    def _update_column_widths(self, updated_cells: set[CellKey]) -> None:
        """Forgets what was drawn with the former widths: the screen may draw between a cell's update and this."""
        super()._update_column_widths(updated_cells)
        self.notify_style_update()

    def on_click(self, event: Click) -> None:
        """Ignores a click on a column that the table does not have, or no longer has, on which Textual's own fails."""
        if event.style.meta.get("column", -1) >= len(self.columns):
            event.prevent_default()

    def action_scroll_home(self) -> None:
        """Moves the cursor to the first row."""
        self.action_scroll_top()

    def action_scroll_end(self) -> None:
        """Moves the cursor to the last row."""
        self.action_scroll_bottom()
