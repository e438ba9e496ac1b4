"""The chart keeps peaks, leaves gaps, and never fails."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from textual.app import App

from elite_tui.widgets.braille import BrailleCanvas
from elite_tui.widgets.chart import LineChart, Series, reduce_to_columns, unbroken_stretches, value_range


def test_stretches_break_at_missing_values():
    points = [(1, 5.0), (2, None), (3, 4.0), (4, math.nan), (5, math.inf), (6, 2.0), (7, 1.0)]
    assert unbroken_stretches(points) == [[(1, 5.0)], [(3, 4.0)], [(6, 2.0), (7, 1.0)]]


def test_one_column_keeps_the_lowest_and_the_highest():
    stretch = [(float(x), 1.0) for x in range(1000)]
    stretch[500] = (500.0, 99.0)
    stretch[501] = (501.0, -7.0)
    columns = reduce_to_columns(stretch, 0, 999, 10)
    assert len(columns) == 10
    assert max(column.high for column in columns) == 99.0
    assert min(column.low for column in columns) == -7.0


def test_first_and_last_join_neighbouring_columns():
    columns = reduce_to_columns([(0.0, 1.0), (0.1, 3.0), (10.0, 2.0)], 0, 10, 2)
    assert [(column.first, column.last) for column in columns] == [(1.0, 3.0), (2.0, 2.0)]


def test_points_of_one_x_share_a_column():
    (column,) = reduce_to_columns([(5.0, 1.0), (5.0, 2.0)], 5.0, 5.0, 80)
    assert (column.x, column.low, column.high) == (0, 1.0, 2.0)


@given(
    st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=300),
    st.integers(1, 60),
)
def test_reduction_never_loses_an_extreme(values, columns):
    stretch = [(float(index), value) for index, value in enumerate(values)]
    reduced = reduce_to_columns(stretch, 0, len(values) - 1, columns)
    assert len(reduced) <= columns
    assert min(column.low for column in reduced) == min(values)
    assert max(column.high for column in reduced) == max(values)
    assert [column.x for column in reduced] == sorted({column.x for column in reduced})


@pytest.mark.parametrize(("values", "expected"), [([], (0.0, 1.0)), ([0.0], (-0.5, 0.5)), ([100.0], (95.0, 105.0))])
def test_range_is_never_empty(values, expected):
    assert value_range(values) == expected


def test_braille_dots_and_lines():
    canvas = BrailleCanvas(2, 1)
    canvas.dot(0, 0)
    canvas.dot(99, 99)
    assert canvas.rows() == ["⠁ "]
    canvas.line(0, 3, 3, 3)
    assert canvas.rows() == ["⣁⣀"]


class ChartApp(App[None]):
    def __init__(self, *series):
        super().__init__()
        self.chart = LineChart("loss", id="chart")
        self._series = series

    def compose(self):
        yield self.chart

    def on_mount(self):
        self.chart.styles.height = "100%"
        self.chart.show(*self._series)


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
    ],
)
async def test_any_points_at_any_size(points, size):
    app = ChartApp(Series(name="train", points=points), Series(name="held-out", points=points, marker="◆"))
    async with app.run_test(size=size):
        lines = app.chart.render().plain.splitlines()
        assert all(len(line) <= size[0] for line in lines if "loss" not in line and "no values" not in line)
        assert len(lines) <= size[1]


async def test_axes_and_legend_carry_the_figures():
    app = ChartApp(Series(name="train", points=[(1, 4.0), (50, 2.0)]), Series(name="held-out", points=[], marker="◆"))
    async with app.run_test(size=(60, 12)):
        text = app.chart.render().plain
    lines = text.splitlines()
    assert "train 2.000" in lines[0]
    assert "held-out n/a" in lines[0]
    assert lines[1].startswith("4.00 ┤")
    assert lines[-3].startswith("2.00 ┤")
    assert lines[-1].split() == ["1", "50", "step"]
