"""The step: gradients of pieces against one plain backward pass; abandoning."""

from __future__ import annotations

import pytest
import torch
from support.tiny import patterned_windows, tiny_model

from engine.config import LoraSection
from engine.models.adapter import attach_adapter, trainable
from engine.models.lm_head import summed_cross_entropy
from engine.steps.whole_step import StepAbandonedError, WholeSequenceStep, count_targets

FAMILIES = ("qwen2", "qwen3", "llama", "phi", "starcoder2")


class Quiet:
    """A monitor that lets a number of questions pass before it asks for a stop."""

    def __init__(self, patience=10**9):
        self.patience = patience
        self.seen = []

    def progress(self, stage, done, total, *, layer=None, tile=None):
        self.seen.append((stage, done, total))

    def stop_requested(self):
        self.patience -= 1
        return self.patience < 0


def adapted(family="qwen2", **options):
    model = attach_adapter(tiny_model(family), LoraSection(rank=4, **options), seed=1)
    torch.manual_seed(5)
    for name, parameter in trainable(model).items():
        if "lora_B" in name:  # zero at first, which would leave every gradient of A zero
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in trainable(model).items()}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_is_that_of_the_mean_over_all_tokens_of_the_batch(family, recompute):
    windows = [patterned_windows([length])[0] for length in (60, 17, 2, 33)]
    model = adapted(family)
    losses = [
        torch.nn.functional.cross_entropy(
            model(input_ids=torch.as_tensor(window.ids)[None]).logits[0, :-1],
            torch.as_tensor(window.ids)[1:],
            reduction="none",
        )
        for window in windows
    ]
    torch.cat(losses).mean().backward()
    expected = gradients(model)
    model.zero_grad()

    targets = count_targets(windows)
    result = WholeSequenceStep(model, recompute=recompute).run(windows, 1 / targets, Quiet())

    assert result.tokens == targets == 59 + 16 + 1 + 32
    assert result.loss_sum == pytest.approx(torch.cat(losses).sum().item(), rel=1e-5)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-7)


def test_accumulation_over_calls_equals_one_call():
    windows = [patterned_windows([length], seed=length)[0] for length in (40, 9, 25)]
    model = adapted()
    step = WholeSequenceStep(model, recompute=False)
    step.run(windows, 0.01, Quiet())
    at_once = gradients(model)
    model.zero_grad()
    for window in windows:
        step.run([window], 0.01, Quiet())
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, at_once[name], rtol=1e-6, atol=1e-9)


def test_an_abandoned_step_says_so_between_windows():
    windows = [patterned_windows([20])[0]] * 3
    with pytest.raises(StepAbandonedError):
        WholeSequenceStep(adapted(), recompute=False).run(windows, 1.0, Quiet(patience=1))


@pytest.mark.parametrize("piece", [1, 7, 50, 1000])
def test_loss_in_pieces_equals_the_whole(piece):
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 30)
    hidden = torch.randn(50, 8, requires_grad=True)
    targets = torch.randint(30, (50,))
    whole = torch.nn.functional.cross_entropy(head(hidden), targets, reduction="sum")
    (expected,) = torch.autograd.grad(whole, hidden)
    pieces = summed_cross_entropy(hidden, head, targets, piece=piece)
    torch.testing.assert_close(pieces, whole)
    torch.testing.assert_close(torch.autograd.grad(pieces, hidden)[0], expected)


def test_no_tensor_of_all_logits_exists_in_training():
    """50 tokens in pieces of 10: nothing that autograd keeps has 50 x vocabulary numbers."""
    head = torch.nn.Linear(8, 300)
    hidden = torch.randn(50, 8, requires_grad=True)
    largest = 0

    def note(tensor):
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        summed_cross_entropy(hidden, head, torch.randint(300, (50,)), piece=10).backward()
    assert largest <= 10 * 300
