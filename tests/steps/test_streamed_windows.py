"""The streamed way takes the whole-sequence way's place: same losses, same gradients, same manners."""

from __future__ import annotations

import pytest
import torch
from steps.test_whole_step import Quiet, adapted, gradients
from support.tiny import patterned_windows

from engine.models.adapter import trainable
from engine.models.fine_tuning import AdapterTuning
from engine.plan.stream_plan import StreamPlan
from engine.steps.streamed_windows import StreamedWindows
from engine.steps.whole_step import StepAbandonedError, WholeSequenceStep

CPU = torch.device("cpu")
PLAN = StreamPlan(tile=16, key_block=32)
WINDOWS = patterned_windows([60, 17, 2, 33])


def test_same_gradients_and_losses_as_whole_sequences(tmp_path):
    whole, tiled = adapted(), adapted()
    ways = (
        WholeSequenceStep(whole, recompute=False),
        StreamedWindows(AdapterTuning(tiled), PLAN, device=CPU, spill_directory=tmp_path),
    )
    results = [way.run(WINDOWS, 0.01, Quiet()) for way in ways]
    assert results[0].tokens == results[1].tokens
    assert results[1].loss_sum == pytest.approx(results[0].loss_sum, rel=1e-5)
    for name, gradient in gradients(whole).items():
        torch.testing.assert_close(gradients(tiled)[name], gradient, rtol=1e-4, atol=1e-6)
    for window in WINDOWS:
        assert ways[1].loss(window) == pytest.approx(ways[0].loss(window), rel=1e-5)


def test_the_base_model_is_scored_with_the_adapter_off(tmp_path):
    whole, tiled = adapted(), adapted()
    expected = WholeSequenceStep(whole, recompute=False)
    way = StreamedWindows(AdapterTuning(tiled), PLAN, device=CPU, spill_directory=tmp_path)
    with whole.disable_adapter(), tiled.disable_adapter():
        base = way.loss(WINDOWS[0])
        assert base == pytest.approx(expected.loss(WINDOWS[0]), rel=1e-5)
    assert way.loss(WINDOWS[0]) != pytest.approx(base, rel=1e-5)


def test_scoring_draws_no_random_number_and_keeps_the_mode(tmp_path):
    model = adapted(dropout=0.5).train()
    way = StreamedWindows(AdapterTuning(model), PLAN, device=CPU, spill_directory=tmp_path)
    state = torch.get_rng_state()
    assert way.loss(WINDOWS[0]) == way.loss(WINDOWS[0])
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(p.grad is None for p in trainable(model).values())


def test_abandoned_within_a_window_and_told_of_tiles(tmp_path):
    way = StreamedWindows(AdapterTuning(adapted()), PLAN, device=CPU, spill_directory=tmp_path)
    monitor = Quiet(patience=5)
    with pytest.raises(StepAbandonedError):
        way.run(WINDOWS, 0.01, monitor)
    assert [seen[0] for seen in monitor.seen] == ["forward"] * 6
    way.run(WINDOWS, 0.01, Quiet())
