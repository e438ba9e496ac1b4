"""Runs of any length in the monitor: bounded memory and redraws, with every peak and the latest steps whole."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elite_tui.format.figures import printable
from elite_tui.plot.picture import Scale, draw
from elite_tui.plot.series import Series, values
from elite_tui.plot.smoothing import Smoother
from elite_tui.runs.history import ROWS, X_AXES, RunHistory, Table, mean_of
from elite_tui.runs.open_runs import OpenRun
from elite_tui.runs.panels import figures
from elite_tui.runs.result_panels import foreseen
from elite_tui.runs.view import LONGEST_TEXT, RunView
from elite_tui.widgets.line_pane import LinePane
from engine.protocol.events import EvalCompleted, LogLine, RunFinished, RunStarted, StepCompleted, WarningRaised
from engine.protocol.wire import Envelope


def filled(numbers, most=64):
    table = Table("step", "loss", axes=("step",), averaged=("loss",), most=most)
    for step, number in enumerate(numbers, start=1):
        table.append(step=step, loss=number)
    return table


numbers = st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), max_size=700)


@given(numbers)
@settings(max_examples=60)
def test_a_thinned_table_keeps_peaks_order_ends_and_sums(losses):
    table = filled(losses)
    assert len(table) < 64
    assert table.appended == len(losses)
    steps = list(table["step"])
    assert steps == sorted(steps)
    assert steps[-16:] == list(range(1, len(losses) + 1))[-16:]
    known = [loss for loss in losses if loss is not None]
    assert steps[:1] == [1.0][: len(losses)]
    if not known:
        assert table.total("loss") is None
        return
    kept = table.known("loss")
    assert (min(kept), max(kept)) == (min(known), max(known))
    assert set(kept) <= set(known)
    np.testing.assert_allclose(list(table["loss"])[-16:], [math.nan if x is None else x for x in losses[-16:]])
    if None not in losses:
        assert table.total("loss") == pytest.approx(sum(known), rel=1e-9, abs=1e-3)


@given(st.integers(1, 600), st.integers(0, 600))
@settings(max_examples=60)
def test_steps_that_are_repeated_leave_a_thinned_table(count, kept):
    table = filled([1.0] * count)
    coarsest = 2 * max(table[ROWS])
    table.keep_until(kept)
    assert all(step <= kept for step in table["step"])
    assert abs(table.appended - min(kept, count)) <= coarsest


@pytest.mark.parametrize("weight", [0.6, 0.9, 0.99])
def test_a_smoothed_thinned_curve_is_that_of_all_steps(weight):
    """Dips to zero are rare: between the lowest and the highest of many steps, the middle is not their mean."""
    random = np.random.default_rng(1)
    losses = 5.0 + random.normal(0, 0.1, 3000) - 5.0 * (random.random(3000) < 0.02)
    table = filled(losses.tolist(), most=512)
    smooth = Smoother()(values(table[mean_of("loss")]), weight, values(table[ROWS]))
    plain = Smoother()(losses, weight)
    assert smooth[-1] == pytest.approx(plain[-1], abs=0.02)
    at = values(table["step"]).astype(int) - 1
    early = values(table[ROWS]) > 8
    assert abs(smooth[early].mean() - losses[: at[early].max()].mean()) < 0.1


def test_smoothing_goes_on_where_it_was_with_rows_of_several_steps():
    y, rows = values([1.0, 5.0, None, 2.0, 4.0]), values([4.0, 4.0, 2.0, 1.0, 1.0])
    grown = Smoother()
    grown(y[:3], 0.9, rows[:3])
    np.testing.assert_allclose(grown(y, 0.9, rows), Smoother()(y, 0.9, rows))
    # Of a point that stands for four steps, the past weighs the fourth power.
    each = Smoother()(values([1.0] * 4 + [5.0] * 4), 0.9)
    assert Smoother()(y, 0.9, rows)[1] == pytest.approx(each[-1])


def completed(step, **more):
    return StepCompleted(
        step=step, total_steps=99, epoch=0.1, loss=1.0, lr=1.0, grad_norm=None, tokens=1, tokens_per_second=1.0, **more
    )


def test_a_long_run_s_step_time_is_the_mean_of_all_its_steps_in_monitor_and_result():
    """Pauses are rare: the mean of the lowest and the highest of many steps is far from that of all."""
    count, pauses = 6_000, range(10, 3_000, 100)
    run = OpenRun(key="k", path=Path("/r"))
    history = run.view.history
    history.steps = Table(
        *("step", "tokens", "time", "seconds", "gpu_peak", "host_used"), axes=X_AXES, averaged=("seconds",), most=512
    )
    history.begin(0.0)
    for number in range(1, count + 1):
        history.step_completed(completed(number, seconds=101.0 if number in pauses else 1.0), float(number))
    run.view.finished = RunFinished(status="completed", steps=count, seconds=9_000.0)
    assert 1.0 + 100.0 * len(pauses) / count == 1.5
    assert any(re.fullmatch(r"step time +1\.5s", line.plain.strip()) for line in figures(run, (60, 40)))
    assert foreseen(run.view, None)[1].plain.split()[:4] == ["a", "step", "n/a", "1.5s"]


def test_a_rollback_takes_its_steps_out_of_the_curves():
    history = RunHistory()
    history.begin(0.0)
    for step in (1, 2, 3, 4, 5, 3, 4):
        history.step_completed(completed(step), float(step))
        if step == 5:
            history.evaluated(EvalCompleted(step=5, loss=1.0, perplexity=None, tokens=1), 5.0)
    assert list(history.steps["step"]) == [1, 2, 3, 4]
    assert history.tokens == 4
    assert len(history.held_out) == 0


def test_resumptions_without_number_take_linear_time():
    """Twenty thousand attempts over twenty thousand steps."""
    view = RunView()
    for step in range(1, 20_001):
        for event in (RunStarted(model="m", context=1, total_steps=9, first_step=step - 1), completed(step)):
            view.apply(Envelope(run="r", seq=2 * step, time=1.0, event=event))
    assert len(view.history.steps) == 20_000


def test_markers_are_where_each_alone_would_be():
    random = np.random.default_rng(3)
    for log in (False, True):
        x, y = np.sort(random.random(200)) * 90, random.normal(3, 3, 200)
        y[7] = np.nan
        scale = Scale(0.5, 9.0, log)
        one = Series(name="held-out", x=x, y=y, marker="o")
        cells = draw([one], [], (5.0, 80.0), scale, (40, 9))
        expected = {
            (scale.row(b, 9), round((a - 5.0) / 75.0 * 39))
            for a, b in zip(x.tolist(), y.tolist(), strict=True)
            if math.isfinite(b) and (b > 0 or not log) and 5 <= a <= 80
        }
        assert {(r, c) for r, row in enumerate(cells) for c, cell in enumerate(row) if cell[0] == "o"} == expected


def test_a_long_text_is_shortened_and_says_so():
    view = RunView()
    view.apply(Envelope(run="r", seq=0, time=1.0, event=LogLine(level="info", text="x" * 1_000_000)))
    view.apply(Envelope(run="r", seq=1, time=1.0, event=WarningRaised(code="c", text="y" * 30_000, hint="z" * 30_000)))
    assert view.log[0].text == "x" * LONGEST_TEXT + " … 990,000 more characters"
    assert len(view.events[0].remedy) < LONGEST_TEXT + 40


class Pane(LinePane):
    """A pane of a fixed width, without an app."""

    line_width = 40


texts = st.text(st.sampled_from("ab  \t日é\u0301\u200d👍\u200b\x1b"), max_size=200)


@given(texts, st.integers(0, 39))
@settings(max_examples=200)
def test_a_folded_line_loses_nothing_but_spaces_and_fits(text, gutter):
    from rich.cells import cell_len

    rows = list(LinePane.fold(Pane(id="pane"), "g" * gutter, "info", text))
    assert "".join(row.text for row in rows).replace(" ", "") == printable(text).replace(" ", "")
    # A character may be wider than the row.
    assert all(cell_len(row.text) <= max(2, 40 - gutter) for row in rows)


@pytest.mark.parametrize("part", ["xx", "e\u0301", "日", "\u0301", "a "])
def test_a_line_is_folded_in_linear_time(part):
    text = part * 150_000
    rows = list(LinePane.fold(Pane(id="pane"), "", "info", text))
    assert sum(len(row.text) for row in rows) > len(text) // 2 - 1
