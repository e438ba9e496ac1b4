"""Losses token by token: the same however the step is laid out, in the right place, with intervals that hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny import patterned_windows, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from engine.config import LoraSection
from engine.data.store import FileEntry
from engine.data.windows import Window, Windows
from engine.evaluation.held_out import HeldOut
from engine.evaluation.intervals import bootstrap, mean_interval, paired_shares, wilson
from engine.evaluation.tally import bucket_name, bucket_of, by_language, by_position, overall, tally_losses
from engine.models.adapter import attach_adapter
from engine.models.fine_tuning import AdapterTuning
from engine.plan.stream_plan import StreamPlan
from engine.steps.held_out_loss import evaluate
from engine.steps.streamed_windows import StreamedWindows
from engine.steps.whole_step import WholeSequenceStep


def packed_window():
    ids = np.concatenate([window.ids for window in patterned_windows([40, 9, 31])])
    return Window(ids, (0, 40, 49))


def test_both_ways_score_each_token_the_same(tmp_path):
    model = attach_adapter(tiny_model(), LoraSection(rank=4), seed=0).train()
    window = packed_window()
    whole = WholeSequenceStep(model, recompute=False)
    by_whole, likeliest = whole.token_scores(window)
    assert by_whole.shape == (len(window) - 1,)
    assert by_whole.sum() == pytest.approx(whole.loss(window), rel=1e-5)
    assert (by_whole[[39, 48]] == 0).all()
    for index, start in enumerate(window.starts):
        stop = [*window.starts, len(window)][index + 1]
        ids = torch.as_tensor(window.ids[start:stop])
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, :-1]
        expected = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
        np.testing.assert_allclose(by_whole[start : stop - 1], expected.numpy(), rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(likeliest[start : stop - 1], logits.argmax(-1).numpy())
    assert model.training
    streamed = StreamedWindows(
        AdapterTuning(model), StreamPlan(tile=16, key_block=32), device=torch.device("cpu"), spill_directory=tmp_path
    )
    scores, predicted = streamed.token_scores(window), window.predicted[1:]
    np.testing.assert_allclose(scores.losses, by_whole, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(scores.likeliest[predicted], likeliest[predicted])
    streamed.close()


class Operations(TorchDispatchMode):
    """Records the names of what torch computes."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("way", ["whole", "streamed"])
def test_only_scores_pay_for_the_likeliest_tokens(way, tmp_path):
    model = tiny_model()
    step = (
        WholeSequenceStep(model, recompute=False)
        if way == "whole"
        else StreamedWindows(
            AdapterTuning(attach_adapter(model, LoraSection(rank=4), seed=0)),
            StreamPlan(tile=16, key_block=32),
            device=torch.device("cpu"),
            spill_directory=tmp_path,
        )
    )
    with Operations() as loss:
        step.loss(packed_window())
    with Operations() as scores:
        step.token_scores(packed_window())
    assert "argmax" not in loss.names
    assert "argmax" in scores.names
    step.close()


def held_out_of(lengths, languages, context=64):
    tokens = np.concatenate([w.ids for w in patterned_windows(lengths)]).astype(np.uint16)
    files = tuple(FileEntry(f"f{i}", 0, languages[i], i, n) for i, n in enumerate(lengths))
    return HeldOut(Windows(tokens, context), tokens, files, np.cumsum([0, *lengths]))


def quiet(done, total, what):
    pass


def test_sums_go_where_their_tokens_are():
    held_out = held_out_of([100, 30, 71], ["Python", "Go", "Python"])
    model = tiny_model()
    step = WholeSequenceStep(attach_adapter(model, LoraSection(rank=4), seed=0), recompute=False)
    tally = tally_losses(step.token_scores, held_out, max_tokens=10_000, progress=quiet)
    whole = evaluate(step.loss, held_out.windows, max_tokens=10_000, progress=lambda *_: None)
    assert tally.counts.sum() == whole.tokens
    assert tally.sums.sum() / tally.counts.sum() == pytest.approx(whole.loss, rel=1e-5)
    # The first token of each window has nothing before it; every other one is counted with its file.
    assert [int(n) for n in tally.counts.sum(1)] == [98, 29, 70]
    rows = by_language(tally, tally, held_out)
    assert [(row.name, row.tokens, row.files) for row in rows] == [("Python", 168, 2), ("Go", 29, 1)]
    assert all(row.change == 0 for row in rows)
    assert [row.name for row in by_position(tally, tally)] == ["0–1K"]


def test_buckets_double():
    positions = np.array([1, 1023, 1024, 2047, 2048, 4095, 4096, 131_072])
    assert bucket_of(positions).tolist() == [0, 0, 1, 1, 2, 2, 3, 8]
    assert [bucket_name(b) for b in range(4)] == ["0–1K", "1–2K", "2–4K", "4–8K"]


def test_the_paired_difference_is_surer_than_either_model():
    random = np.random.default_rng(0)
    held_out = held_out_of([64] * 40, ["Python"] * 40)
    shape = (40, 16)
    hardness = random.uniform(1, 4, 40)
    counts = np.zeros(shape)
    counts[:, 0] = 63
    base, tuned = np.zeros(shape), np.zeros(shape)
    base[:, 0] = 63 * hardness
    tuned[:, 0] = 63 * (hardness - 0.1 + 0.02 * random.standard_normal(40))
    from engine.evaluation.tally import LossTally

    row = overall(LossTally(base, counts), LossTally(tuned, counts))
    assert row.change == pytest.approx(math.expm1(-0.1), abs=0.01)
    assert row.change_interval.low < row.change < row.change_interval.high < 0
    alone = (row.base_interval.high - row.base_interval.low) / row.base
    assert row.change_interval.high - row.change_interval.low < alone / 5
    assert held_out.windows


def test_nothing_scored_is_refused():
    from engine.evaluation.tally import LossTally

    empty = LossTally(np.zeros((2, 16)), np.zeros((2, 16)))
    with pytest.raises(ValueError, match="no token"):
        overall(empty, empty)


# --- intervals ----------------------------------------------------------------------------------------------


@given(st.integers(1, 500), st.data())
def test_wilson_holds_the_share_and_stays_within_bounds(trials, data):
    successes = data.draw(st.integers(0, trials))
    found = wilson(successes, trials)
    assert 0 <= found.low <= successes / trials <= found.high <= 1
    assert found.low < found.high


def test_wilson_is_the_textbooks():
    found = wilson(8, 10)
    assert (found.low, found.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))


@settings(max_examples=50)
@given(st.integers(5, 200), st.data())
def test_paired_shares_hold_the_difference_and_never_are_a_point(trials, data):
    gained = data.draw(st.integers(0, trials))
    lost = data.draw(st.integers(0, trials - gained))
    found = paired_shares(gained, lost, trials)
    assert -1 <= found.low <= (gained - lost) / trials <= found.high <= 1
    assert found.high - found.low > 0


def test_bootstrap_covers_a_mean():
    random = np.random.default_rng(1)
    inside = 0
    for _ in range(100):
        found = mean_interval(random.exponential(2.0, 60))
        inside += found.low <= 2.0 <= found.high
    assert inside >= 86


def test_too_few_units_have_no_interval():
    assert bootstrap(4, lambda weights: weights.sum(1)) is None
    assert paired_shares(1, 0, 4) is None
