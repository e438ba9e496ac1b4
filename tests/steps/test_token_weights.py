"""Real-valued weights of tokens: the loss and the gradient are those of plain transformers and PEFT in fp64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from steps.test_whole_step import Quiet, gradients
from support.tiny import VOCABULARY, tiny_model

from engine.config import LoraSection
from engine.data.windows import Window, joined
from engine.models.adapter import attach_adapter
from engine.models.fine_tuning import AdapterTuning
from engine.plan.stream_plan import StreamPlan
from engine.steps.streamed_windows import StreamedWindows
from engine.steps.whole_step import WholeSequenceStep

CPU = torch.device("cpu")
PLANS = {"tiles of 16": StreamPlan(tile=16, key_block=32, loss_piece=16), "one tile": StreamPlan(tile=512)}


def wide_model(seed: int = 0):
    """A tiny model with an adapter that is not zero, in fp64."""
    adapted = attach_adapter(tiny_model().double(), LoraSection(rank=4), seed)
    torch.manual_seed(seed + 1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.double() + 0.05 * torch.randn_like(parameter.data.double())
    return adapted


def step_of(kind, model, folder):
    if kind == "whole":
        return WholeSequenceStep(model, recompute=False)
    if kind == "recompute":
        return WholeSequenceStep(model, recompute=True)
    return StreamedWindows(AdapterTuning(model), PLANS[kind], device=CPU, spill_directory=folder)


def weighted_window(length, seed, starts=(0,)):
    random = np.random.RandomState(seed)
    weights = random.normal(size=length)
    return Window(random.randint(0, VOCABULARY, length), starts, random.rand(length) < 0.8, weights)


def plain_loss(model, window):
    """The weighted sum, document by document, one token after the other."""
    total = torch.zeros((), dtype=torch.float64)
    for start, stop in zip(window.starts, (*window.starts[1:], len(window)), strict=True):
        ids = torch.as_tensor(window.ids[start:stop])
        logs = torch.log_softmax(model(input_ids=ids[None], use_cache=False).logits[0], dim=-1)
        for position in range(1, len(ids)):
            if window.learnt[start + position]:
                total = total - float(window.weights[start + position]) * logs[position - 1, ids[position]]
    return total


@pytest.mark.parametrize("kind", ["whole", "recompute", *PLANS])
def test_loss_and_gradient_are_those_of_a_sum_by_hand(kind, tmp_path):
    windows = [weighted_window(70, 1, (0, 23)), weighted_window(41, 2)]
    expected = wide_model()
    loss = torch.stack([plain_loss(expected, window) for window in windows]).sum()
    (0.3 * loss).backward()
    model = wide_model()
    step = step_of(kind, model, tmp_path)
    found = step.run(windows, 0.3, Quiet())
    assert found.loss_sum == pytest.approx(loss.item(), rel=1e-12)
    for name, gradient in gradients(expected).items():
        torch.testing.assert_close(gradients(model)[name], gradient, rtol=1e-9, atol=1e-12)
    assert sum(step.loss(window) for window in windows) == pytest.approx(loss.item(), rel=1e-12)


def test_windows_that_go_together_keep_their_weights(tmp_path):
    windows = [weighted_window(30, 3), weighted_window(21, 4), Window(np.arange(20))]
    apart, together = wide_model(), wide_model()
    losses = []
    for model, micro_batch in ((apart, 1), (together, 3)):
        losses.append(WholeSequenceStep(model, recompute=False, micro_batch=micro_batch).run(windows, 1.0, Quiet()))
    assert losses[0].loss_sum == pytest.approx(losses[1].loss_sum, rel=1e-12)
    for name, gradient in gradients(apart).items():
        torch.testing.assert_close(gradients(together)[name], gradient, rtol=1e-9, atol=1e-12)


def test_the_divisor_counts_weights_of_what_is_predicted():
    window = Window(np.arange(5), (0, 3), np.array([1, 1, 0, 1, 1], dtype=bool), np.array([9, 0.5, 7, 5, 2.0]))
    assert window.divisor == 2.5  # the tokens 1 and 4: token 0 and token 3 begin documents
    assert Window(np.arange(5), (0, 3)).divisor == 3
    assert joined([window, Window(np.arange(4))]).divisor == 5.5
    assert window.first(2).divisor == 0.5
