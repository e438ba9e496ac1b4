"""Keys, buttons and fields are whole on small and large terminals, and what lies below can be scrolled to."""

from __future__ import annotations

import pytest
from rich.cells import cell_len
from textual.widgets import Button, DataTable, Input, Select
from textual.widgets._footer import FooterKey

from elite_tui.screens.export import ExportScreen
from elite_tui.screens.help import HelpScreen
from tests.tui.support import gpu_machine, history_of, make_app, settled, still, until
from tests.tui.test_run_snapshots import GPU_RUN, GpuReplay, RunReport, monitor, result_of, runs_engine

SIZES = ((60, 20), (80, 24), (100, 30), (200, 60))
sizes = pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
WIZARD = ("project", "hardware", "tiers", "options", "data", "review")


def cut(screen):
    """Widgets that stand partly outside of what shows them, from side to side, or are too narrow for their words."""
    found = []
    for widget in screen.query("*").results():
        if not isinstance(widget, (Button, FooterKey, Input, Select)) or not widget.display or not widget.region:
            continue
        place, clip = screen.find_widget(widget).region, screen.find_widget(widget).clip
        if place.x < clip.x or place.right > clip.right:
            found.append((widget, place, clip))
        if isinstance(widget, Button) and widget.content_size.width < cell_len(str(widget.label)):
            found.append((widget, widget.content_size, str(widget.label)))
        if isinstance(widget, Select):
            shown = max(cell_len(str(prompt)) for prompt, value in widget._options if value == widget.value)
            if widget.size.width < shown + 3:  # its arrow and the space around
                found.append((widget, widget.size, shown))
    return found


def help_key(screen):
    return [key for key in screen.query(FooterKey) if key.action == "help"]


@sizes
async def test_the_wizard(size):
    app = make_app(machine=gpu_machine(), values={"model.name": "qwen2.5-coder-1.5b"})
    app.state.snapshots.extend(history_of(gpu_machine()))
    async with app.run_test(size=size) as pilot:
        for name in WIZARD:
            app.go(name)
            await settled(pilot)
            await still(pilot)
            assert cut(app.screen) == [], name
            assert help_key(app.screen), name
        app.go("tiers")
        await settled(pilot)
        table = app.screen.query_one(DataTable)
        assert app.screen.query_one("#sum").size.height >= 4, "the sums of a tier are in sight"
        assert table.show_vertical_scrollbar == (table.virtual_size.height > table.size.height)


@sizes
async def test_a_run_and_its_result(size):
    app = monitor(GpuReplay())
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: app.state.run is not None and app.state.run.updated_at is not None)
        await still(pilot)
        assert cut(app.screen) == []
    app, enter = result_of(RunReport(reference=GPU_RUN))
    async with app.run_test(size=size) as pilot:
        await enter(pilot)
        await still(pilot)
        assert cut(app.screen) == []
        assert help_key(app.screen)
    app = make_app("runs", engine=runs_engine())
    async with app.run_test(size=size) as pilot:
        await settled(pilot)
        await still(pilot)
        assert cut(app.screen) == []
        await pilot.press("f1")
        await until(pilot, lambda: isinstance(app.screen, HelpScreen))
        assert cut(app.screen) == []


@sizes
async def test_the_formats_of_an_export(size, tmp_path):
    app = make_app()
    async with app.run_test(size=size) as pilot:
        await settled(pilot)
        app.push_screen(ExportScreen(tmp_path))
        await until(pilot, lambda: isinstance(app.screen, ExportScreen))
        await settled(pilot)
        assert cut(app.screen) == []
        assert app.screen.query_one("#close", Button).region in app.screen.query_one("#dialog").region


async def test_the_table_of_windows_has_one_line_a_tier(tmp_path):
    app = make_app(machine=gpu_machine(), values={"model.name": "qwen2.5-coder-1.5b"})
    async with app.run_test(size=(100, 30)) as pilot:
        app.go("data")
        await settled(pilot)
        await until(pilot, lambda: app.state.data.value is not None)
        await still(pilot)
        block = app.screen.query_one("#windows")
        head = str(block.content).splitlines()[1]
        assert head.endswith("unpacked")
        assert block.content_size.width >= cell_len(head)
