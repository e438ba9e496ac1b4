"""A table whose rows are drawn between a cell's change and the next pause of its messages."""

from __future__ import annotations

import pytest
from textual.app import App

from elite_tui.widgets.table import Table


class Shown(App[None]):
    def compose(self):
        yield Table[str](cursor_type="row", cell_padding=1)


def draw(table):
    """Draws each line, as the screen does when any of its widgets changes."""
    return ["".join(segment.text for segment in table.render_line(row)) for row in range(3)]


@pytest.mark.parametrize("change", ["update", "add"])
async def test_a_column_that_widens_is_drawn_with_its_width(change):
    app = Shown()
    async with app.run_test(size=(60, 10)) as pilot:
        table = app.query_one(Table)
        table.add_column("up to", key="up to")
        table.add_column("an epoch", key="an epoch")
        table.add_row("…", "7m", key="one")
        await pilot.pause()
        if change == "update":
            table.update_cell("one", "up to", "a long way", update_width=True)
        else:
            table.add_row("a long way", "7m", key="two")
        draw(table)
        await pilot.pause()
        drawn = draw(table)
        assert any(" up to       an epoch" in line for line in drawn)
        assert any(" a long way  7m " in line for line in drawn)
