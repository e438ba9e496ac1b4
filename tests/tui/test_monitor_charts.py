"""Charts of the monitor: curves, axes, zoom, marks."""

from __future__ import annotations

import pytest
from textual.events import MouseScrollUp

from elite_tui.plot.viewport import Viewport
from elite_tui.runs.curves import CHARTS
from elite_tui.widgets.chart import LineChart
from elite_tui.widgets.event_list import EventList
from elite_tui.widgets.log_pane import LogPane
from engine.protocol.events import (
    RunStarted,
    StepCompleted,
)
from tests.tui.support import (
    Replay,
    at_step,
    half_way,
    make_app,
    settled,
    text_of,
    until,
)

SIZE = (120, 36)

GIB = 1 << 30


def chart_text(app):
    return text_of(app, "#chart")


async def test_every_chart_has_a_key_and_a_tab():
    app = make_app("monitor", handle=half_way())
    async with app.run_test(size=SIZE) as pilot:
        await at_step(pilot, 33)
        titles = {}
        for kind in CHARTS:
            await pilot.press(kind.key)
            titles[kind.name] = chart_text(app).splitlines()[0]
        assert titles["loss"].startswith("Loss nats a token")
        assert "now 9.00e-05" in titles["rate"]
        assert "norm" in titles["gradient"]
        assert "now 4,426" in titles["speed"]
        assert "used 1.77" in titles["ram"]
        assert "plan 1.96" in titles["ram"]
        await pilot.press("5")
        assert "this run trains on cpu" in chart_text(app)
        tabs = text_of(app, "#chart-tabs")
        await pilot.click("#chart-tabs", offset=(tabs.index("Speed") + 1, 0))
        await until(pilot, lambda: chart_text(app).startswith("Speed"))


async def test_memory_of_a_gpu_stands_against_the_plan():
    handle = Replay([])
    handle.add(RunStarted(model="m", context=64, total_steps=9, device="gpu", planned_gpu_bytes=8 * GIB))
    for step in (1, 2):
        handle.add(
            StepCompleted(
                step=step,
                total_steps=9,
                epoch=0.1,
                loss=1.0,
                lr=1.0,
                grad_norm=1.0,
                tokens=64,
                tokens_per_second=1.0,
                gpu_allocated=5 * GIB,
                gpu_reserved=7 * GIB,
                gpu_peak=6 * GIB,
            )
        )
    app = make_app("monitor", handle=handle)
    async with app.run_test(size=SIZE) as pilot:
        await at_step(pilot, 2)
        await pilot.press("5")
        legend, *plot = chart_text(app).splitlines()
        assert "r reserved 7.00" in legend
        assert "p peak 6.00" in legend
        assert "╌ plan 8.00" in legend
        assert any("╌╌╌╌" in line for line in plot)
        assert "GPU peak    6.00 GiB of 8.00 GiB planned" in text_of(app, "#figures")


async def test_zooming_moving_and_all_of_it_again():
    app = make_app("monitor", handle=half_way())
    async with app.run_test(size=SIZE) as pilot:
        await at_step(pilot, 33)
        chart = app.screen.query_one("#chart", LineChart)
        assert "0 whole" not in text_of(app, "#chart-tabs")
        await pilot.press("plus", "equals_sign")
        assert chart.viewport.span == pytest.approx(33 * 0.49, rel=0.05)
        assert chart.viewport.end is None
        assert "0 whole" in text_of(app, "#chart-tabs")
        await pilot.press("left", "left")
        assert chart.viewport.end is not None
        await pilot.press("minus")
        await pilot.press("0")
        assert chart.viewport == Viewport()
        await pilot._post_mouse_events([MouseScrollUp], "#chart", offset=(20, 4))
        await until(pilot, lambda: chart.viewport.span is not None)


async def test_axes_and_smoothing():
    app = make_app("monitor", handle=half_way())
    async with app.run_test(size=SIZE) as pilot:
        await at_step(pilot, 33)
        assert "raw  y linear  x step" in text_of(app, "#chart-tabs")
        await pilot.press("x")
        assert "270K" in chart_text(app) or "200K" in chart_text(app)
        await pilot.press("x")
        assert chart_text(app).splitlines()[-1].split()[-2:] == ["1m", "time"]
        await pilot.press("x", "y", "right_square_bracket", "right_square_bracket")
        assert "~0.9  y log  x step" in text_of(app, "#chart-tabs")
        assert "train ~0.9" in chart_text(app)
        await pilot.press("left_square_bracket", "left_square_bracket", "left_square_bracket")
        assert "] raw" in text_of(app, "#chart-tabs")
        tabs = text_of(app, "#chart-tabs")
        await pilot.click("#chart-tabs", offset=(tabs.index("] raw") + 3, 0))
        await until(pilot, lambda: "~0.6" in text_of(app, "#chart-tabs"))


async def test_what_happened_is_marked_on_the_axis():
    app = make_app("monitor", handle=half_way())
    async with app.run_test(size=SIZE) as pilot:
        await at_step(pilot, 33)
        axis = chart_text(app).splitlines()[-2]
        assert axis.index("!") < axis.index("▪") < axis.index("↻")


async def test_a_wide_terminal_shows_the_other_charts_small_and_the_events_beside_the_log():
    app = make_app("monitor", handle=half_way())
    async with app.run_test(size=(200, 60)) as pilot:
        await at_step(pilot, 33)
        titles = [text_of(app, f"#small-{index}").split("  ")[0] for index in range(4)]
        assert titles == ["Learning rate", "Gradient norm", "Speed tokens/s", "RAM"]
        assert app.screen.query_one("#events").size.width > 40
        await pilot.press("plus")
        spans = {chart.viewport.span for chart in app.screen.query(LineChart)}
        assert len(spans) == 1
        await pilot.press("l")
        assert isinstance(app.focused, EventList)
        await pilot.press("l")
        assert isinstance(app.focused, LogPane)


@pytest.mark.parametrize("size", [(80, 24), (120, 36), (200, 60)])
async def test_all_charts_together_and_one_by_its_digit(size):
    app = make_app("monitor", handle=half_way())
    async with app.run_test(size=size) as pilot:
        await settled(pilot)
        await until(pilot, lambda: app.state.run.step)
        await pilot.press("g")
        charts = {kind.name: app.screen.query_one(f"#grid-{kind.name}", LineChart) for kind in CHARTS}
        await until(pilot, lambda: "4,426" in charts["speed"].plain)
        assert "1.965" in charts["loss"].plain
        assert not any("too small" in chart.plain for chart in charts.values())
        await pilot.press("3")
        await until(pilot, lambda: "norm 1.000" in app.screen.query_one("#chart", LineChart).plain)
        assert not charts["loss"].display or not charts["loss"].size
        await pilot.press("g", "slash")  # the log can be searched only where it is seen
        await until(pilot, lambda: app.screen.query_one(LogPane).size.height > 0)
        assert not app.screen.has_class("-grid")
