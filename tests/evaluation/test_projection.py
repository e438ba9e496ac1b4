"""The projection of a held-out loss: its interval holds what happens about as often as it says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.evaluation.projection import LEVEL, project, score_in_hindsight


def law(t, a, b, c):
    return a + b * t**-c


def curve_of(random, points=8, end=1e6, noise=0.01, share=0.5):
    """Scores up to a share of the way, and the score at the end."""
    a, b, c = random.uniform(0.5, 2), random.uniform(1, 4), np.exp(random.normal(np.log(0.4), 0.4))
    t = np.linspace(share * end / points, share * end, points)
    unit = (t / 1e4) ** 1.0
    y = law(unit, a, b, c) + noise * random.standard_normal(points)
    final = law(end / 1e4, a, b, c) + noise * random.standard_normal()
    return list(zip(t.tolist(), y.tolist(), strict=True)), end, final


@pytest.mark.parametrize("noise", [0.003, 0.02])
@pytest.mark.parametrize("points", [5, 10])
def test_the_interval_covers_what_it_says(noise, points):
    random = np.random.default_rng(7)
    inside, total = 0, 150
    for _ in range(total):
        curve, end, final = curve_of(random, points=points, noise=noise)
        found = project(curve, end)
        assert found is not None
        inside += found.low <= final <= found.high
    # Twice the standard error of a share of 0.8 in 150 is 0.065; a fit of three numbers to five points is cautious.
    assert LEVEL - 0.08 <= inside / total <= 1.0


def test_more_points_narrow_it():
    wide, narrow = (project(*curve_of(np.random.default_rng(3), points=n, share=0.8)[:2]) for n in (4, 40))
    assert narrow.high - narrow.low < wide.high - wide.low


def test_a_curve_without_noise_is_continued():
    t = np.linspace(1e5, 6e5, 12)
    curve = [(x, law(x / 1e4, 1.2, 3.0, 0.5)) for x in t]
    found = project(curve, 2e6)
    assert found.loss == pytest.approx(law(200, 1.2, 3.0, 0.5), abs=0.02)
    assert found.low <= law(200, 1.2, 3.0, 0.5) <= found.high


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.floats(0, 1e9), st.floats(0.01, 20)), max_size=12),
    st.floats(1, 1e10),
    st.lists(st.floats(0.05, 2), max_size=5),
)
def test_whatever_it_is_given_it_says_something_sensible_or_nothing(points, tokens, past):
    curve = sorted(dict(points).items())
    found = project(curve, tokens, past)
    if found is not None:
        assert 0 < found.low <= found.loss <= found.high < np.inf


def test_past_runs_speak_before_there_is_a_curve_and_steady_it_after():
    past = [0.80, 0.82, 0.81, 0.79]
    assert project([(0, 3.0)], 1e6) is None
    before = project([(0, 3.0)], 1e6, past)
    assert (before.points, before.runs) == (0, 4)
    assert before.low < 3.0 * 0.805 < before.high
    curve, end, final = curve_of(np.random.default_rng(11), points=4, noise=0.05, share=0.3)
    ratio = final / 4.0
    alone, steadied = (project([(0, 4.0), *curve], end, runs) for runs in ([], [ratio * f for f in (0.98, 1, 1.02)]))
    assert steadied.high - steadied.low < alone.high - alone.low
    assert steadied.runs == 3


def test_scored_by_what_was_known_then():
    random = np.random.default_rng(5)
    curve, _, _ = curve_of(random, points=20, noise=0.005, share=1.0)
    scores = score_in_hindsight([(0, 9.0), *curve])
    assert [score.projection.points for score in scores] == [5, 10, 15]
    assert scores[-1].happened == curve[-1][1]
    assert sum(score.inside for score in scores) >= 2
    assert abs(scores[-1].error) < 0.05
    # What came later changes nothing of an early projection.
    changed = [(0, 9.0), *curve[:10], *((t, y + 1) for t, y in curve[10:-1]), curve[-1]]
    assert score_in_hindsight(changed)[0].projection == scores[0].projection
