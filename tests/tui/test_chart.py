"""The chart keeps peaks, leaves gaps, zooms, and never fails."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from textual.app import App
from textual.events import MouseScrollDown, MouseScrollUp

from elite_tui.plot import ticks
from elite_tui.plot.columns import in_window, reduce_to_columns
from elite_tui.plot.picture import BrailleCanvas, Scale, scale_of
from elite_tui.plot.series import Limit, Mark, Series, values
from elite_tui.plot.smoothing import Smoother
from elite_tui.plot.viewport import Viewport
from elite_tui.widgets.chart import LineChart, Picture

finite = st.floats(-1e9, 1e9)


def series(points, **more):
    """Makes a series from pairs; None is a missing value."""
    return Series(name="train", x=values([x for x, _ in points]), y=values([y for _, y in points]), **more)


def reduced(points, columns):
    x, y = values([x for x, _ in points]), values([y for _, y in points])
    return reduce_to_columns(x, y, points[0][0], points[-1][0], columns)


# --- downsampling --------------------------------------------------------------------------------------------


def test_a_missing_value_breaks_the_line():
    points = [(1, 5.0), (2, None), (3, 4.0), (4, math.nan), (5, math.inf), (6, 2.0), (7, 1.0)]
    columns = reduced(points, 100)
    assert [(column.last, column.joined) for column in columns] == [
        (5.0, False),
        (4.0, False),
        (2.0, False),
        (1.0, True),
    ]


def test_first_and_last_join_neighbouring_columns():
    columns = reduced([(0.0, 1.0), (0.1, 3.0), (10.0, 2.0)], 2)
    assert [(column.first, column.last, column.joined) for column in columns] == [(1.0, 3.0, False), (2.0, 2.0, True)]


def test_points_of_one_x_share_a_column():
    (column,) = reduced([(5.0, 1.0), (5.0, 2.0)], 80)
    assert (column.x, column.low, column.high) == (0, 1.0, 2.0)


@given(st.lists(finite, min_size=1, max_size=300), st.integers(1, 60))
def test_reduction_never_loses_an_extreme(numbers, columns):
    found = reduced([(float(index), number) for index, number in enumerate(numbers)], columns)
    assert len(found) <= columns
    assert min(column.low for column in found) == min(numbers)
    assert max(column.high for column in found) == max(numbers)
    assert [column.x for column in found] == sorted({column.x for column in found})


def test_a_line_that_leaves_the_window_is_cut_at_its_edges():
    x, y = in_window(values([0, 10, 20]), values([0, 10, 20]), 4, 16)
    assert list(x) == [4, 10, 16]
    assert list(y) == [4, 10, 16]
    x, y = in_window(values([0, 10]), values([0, 10]), 4, 6)
    assert list(x) == [4, 6]
    assert list(y) == [4, 6]


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50), st.floats(0, 100), st.floats(0, 100))
def test_nothing_outside_the_window_is_kept(places, one, other):
    places, (left, right) = sorted(places), sorted((one, other))
    x, y = in_window(values(places), np.arange(len(places), dtype=float), left, right)
    assert x.size == y.size
    assert all(left <= place <= right for place in x)
    assert list(x) == sorted(x)


# --- smoothing -----------------------------------------------------------------------------------------------


@given(st.lists(st.one_of(st.none(), finite), max_size=60), st.integers(0, 60), st.sampled_from([0.6, 0.9, 0.99]))
def test_smoothing_piece_by_piece_is_smoothing_at_once(numbers, cut, weight):
    whole = values(numbers)
    grown = Smoother()
    grown(whole[:cut], weight)
    np.testing.assert_allclose(grown(whole, weight), Smoother()(whole, weight), rtol=1e-12)


def test_smoothing_is_an_average_that_gaps_do_not_move():
    smooth = Smoother()(values([5.0, None, 5.0, 5.0]), 0.9)
    np.testing.assert_allclose(smooth, [5.0, np.nan, 5.0, 5.0])
    # The second of two values weighs (1 − w) of (1 − w²).
    assert Smoother()(values([0.0, 1.0]), 0.6)[1] == pytest.approx(0.4 / 0.64)
    assert Smoother()(values([1.0, 9.0]), 0.0)[1] == 9.0


def test_another_curve_or_weight_starts_anew():
    smoother = Smoother()
    smoother(values([1.0, 2.0, 3.0]), 0.9)
    assert smoother(values([7.0]), 0.9)[0] == 7.0
    assert list(smoother(values([7.0, 7.0]), 0.6)) == pytest.approx([7.0, 7.0])


# --- zooming -------------------------------------------------------------------------------------------------


def test_zooming_keeps_the_point_under_the_pointer():
    view = Viewport().zoomed(0.5, 0, 100, anchor=0.25)
    assert view.window(0, 100) == (12.5, 62.5)
    assert view.zoomed(2.0, 0, 100, anchor=0.25) == Viewport()


def test_a_view_of_the_newest_steps_stays_with_them():
    view = Viewport().zoomed(0.5, 0, 100)
    assert view.window(0, 100) == (50, 100)
    assert view.window(0, 140) == (90, 140)
    earlier = view.moved(-0.4, 0, 100)
    assert earlier.window(0, 140) == (30, 80)
    assert earlier.moved(9.0, 0, 140) == Viewport(50.0, None)


@given(
    st.lists(st.tuples(st.sampled_from(["in", "out", "left", "right"]), st.floats(0, 1)), max_size=40),
    st.floats(1, 1e6),
)
def test_a_view_is_always_inside_the_data(moves, high):
    view = Viewport()
    for move, anchor in moves:
        if move in ("in", "out"):
            view = view.zoomed(0.7 if move == "in" else 1 / 0.7, 0.0, high, anchor)
        else:
            view = view.moved(-0.2 if move == "left" else 0.2, 0.0, high)
        left, right = view.window(0.0, high)
        assert -1e-6 * high <= left < right <= high * (1 + 1e-6)


# --- axes ----------------------------------------------------------------------------------------------------


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 12), st.sampled_from(["linear", "counts", "seconds"]))
def test_labels_are_few_inside_and_rising(low, span, most, kind):
    found = getattr(ticks, kind)(low, low + span, most)
    assert len(found) <= most + 1
    places = [place for place, _ in found]
    assert places == sorted(places)
    tolerance = 1e-6 * max(span, abs(low), 1)
    assert all(low - tolerance <= place <= low + span + tolerance for place in places)


def test_labels_are_round():
    assert [label for _, label in ticks.linear(1.96, 4.1, 3)] == ["2", "3", "4"]
    assert [label for _, label in ticks.linear(0.0, 0.25, 6)] == ["0.00", "0.05", "0.10", "0.15", "0.20", "0.25"]
    assert [label for _, label in ticks.linear(0.0, 2e-4, 3)] == ["0", "1.0e-04", "2.0e-04"]
    assert [label for _, label in ticks.counts(0, 60_000, 4)] == ["0", "20.0K", "40.0K", "60.0K"]
    assert [label for _, label in ticks.seconds(0, 7000, 4)] == ["0", "30m", "1h", "1h 30m"]
    assert [label for _, label in ticks.logarithmic(0.5, 300, 9)] == [
        "0.5",
        "1",
        "2",
        "5",
        "10",
        "20",
        "50",
        "100",
        "200",
    ]
    assert [label for _, label in ticks.logarithmic(1.0, 1e4, 5)] == ["1", "10", "100", "1000", "10000"]
    assert [label for _, label in ticks.logarithmic(4.1, 4.4, 4)] == ["4.1", "4.2", "4.3", "4.4"]


@pytest.mark.parametrize(
    ("points", "log", "expected"),
    [
        ([(0, 0.0)], False, Scale(-0.5, 0.5)),
        ([(0, 100.0)], False, Scale(95.0, 105.0)),
        ([(0, -1.0), (1, 0.0)], True, None),
        ([(0, -1.0), (1, 10.0), (2, 1000.0)], True, Scale(10.0, 1000.0, log=True)),
        ([(0, None)], False, None),
    ],
)
def test_scales(points, log, expected):
    assert scale_of([series(points)], [], (0, 5), log=log) == expected


def test_a_limit_is_in_view():
    assert scale_of([series([(0, 3.0), (1, 4.0)])], [Limit(name="plan", value=8.0)], (0, 1)) == Scale(3.0, 8.0)


def test_a_logarithmic_scale():
    scale = Scale(1.0, 100.0, log=True)
    assert scale.share(10.0) == pytest.approx(0.5)
    assert scale.share(0.0) < 0
    assert scale.row(1e9, 41) == 0


def test_braille_dots_and_lines():
    canvas = BrailleCanvas(2, 1)
    canvas.dot(0, 0)
    canvas.dot(99, 99)
    assert canvas.rows() == ["⠁ "]
    canvas.line(0, 3, 3, 3)
    assert canvas.rows() == ["⣁⣀"]


# --- the widget ----------------------------------------------------------------------------------------------


class ChartApp(App[None]):
    def __init__(self, picture):
        super().__init__()
        self.chart = LineChart(id="chart")
        self._picture = picture

    def compose(self):
        yield self.chart

    def on_mount(self):
        self.chart.styles.height = "100%"
        self.chart.show(self._picture)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("size", [(10, 3), (24, 4), (40, 8), (200, 60)])
@pytest.mark.parametrize(
    "points",
    [
        [],
        [(1, None)],
        [(1, 2.0)],
        [(1, 2.0), (2, 2.0)],
        [(1, math.nan), (2, math.inf), (3, 1.0)],
        [(x, math.sin(x / 30) * 1e-9) for x in range(5000)],
        [(x, 1e12 + x) for x in range(3)],
        [(1, -3.0), (2, 0.0)],
    ],
)
async def test_any_points_at_any_size(points, size, log):
    picture = Picture(
        title="loss",
        series=[series(points, letter="a"), series(points, marker="◆")],
        limits=[Limit(name="plan", value=1.5)],
        marks=[Mark(x=2.0, sign="!")],
        log=log,
    )
    app = ChartApp(picture)
    async with app.run_test(size=size) as pilot:
        for _ in range(3):
            lines = app.chart.plain.splitlines()
            assert all(len(line) <= size[0] for line in lines if "loss" not in line and "no values" not in line)
            assert len(lines) <= size[1]
            app.chart.zoom(inwards=True)
            app.chart.pan(rightwards=False)
            await pilot.pause()


async def test_axes_and_legend_carry_the_figures():
    held_out = Series(name="held-out", x=values([]), y=values([]), marker="◆")
    picture = Picture(title="Loss", series=[series([(1, 4.0), (50, 2.0)]), held_out], marks=[Mark(x=25, sign="!")])
    app = ChartApp(picture)
    async with app.run_test(size=(60, 12)):
        lines = app.chart.plain.splitlines()
    assert "train 2.000" in lines[0]
    assert "held-out n/a" in lines[0]
    assert lines[1].startswith("4 ┤")
    assert lines[-3].startswith("2 ┤")
    assert "!" in lines[-2]
    assert lines[-1].split() == ["20", "40", "step"]


async def test_the_wheel_zooms_at_the_pointer_and_the_legend_tells_what_is_there():
    app = ChartApp(Picture(title="Loss", series=[series([(x, float(x)) for x in range(101)])]))
    async with app.run_test(size=(103, 12)) as pilot:
        await pilot.pause()
        left = app.chart._plot_left
        await pilot.hover("#chart", offset=(left, 5))
        assert "at step 0" in app.chart.plain.splitlines()[0]
        assert "train n/a" not in app.chart.plain.splitlines()[0]
        await pilot._post_mouse_events([MouseScrollUp], "#chart", offset=(left, 5))
        await pilot.pause()
        low, high = app.chart.viewport.window(0, 100)
        assert low == pytest.approx(0)
        assert high == pytest.approx(70)
        await pilot._post_mouse_events([MouseScrollDown], "#chart", offset=(left, 5), shift=True)
        await pilot.pause()
        assert app.chart.viewport.window(0, 100)[0] == pytest.approx(14)


async def test_only_the_cells_that_changed_are_drawn(monkeypatch):
    points = [(x, 100.0 - x % 7) for x in range(100)]
    app = ChartApp(Picture(title="Loss", series=[series(points)]))
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.pause()
        asked = []
        monkeypatch.setattr(app.chart, "refresh", lambda *regions, **_: asked.extend(regions))
        app.chart.show(Picture(title="Loss", series=[series(points)]))
        assert asked == []
        app.chart.show(Picture(title="Loss", series=[series([*points[:-1], (99, 94.5)])]))
        assert asked
        assert sum(region.area for region in asked) < 100


def smoothed_one_by_one(y, weight):
    mean, past, found = 0.0, 1.0, []
    for value in y:
        if math.isfinite(value):
            mean, past = weight * mean + (1 - weight) * value, past * weight
            found.append(mean / (1 - past))
        else:
            found.append(math.nan)
    return found


@pytest.mark.parametrize("weight", [0.6, 0.97, 0.99])
@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 1000, 5000])
def test_smoothing_in_blocks_is_smoothing_one_by_one(weight, count):
    y = np.random.default_rng(count).normal(2.0, 1.0, count)
    y[::7] = np.nan
    expected = smoothed_one_by_one(y, weight)
    np.testing.assert_allclose(Smoother()(y, weight), expected, rtol=1e-9, equal_nan=True)
    grown = Smoother()
    for end in (count // 3, count // 2, count):
        found = grown(y[:end], weight)
    np.testing.assert_allclose(found, expected, rtol=1e-9, equal_nan=True)
