"""Lookahead beside Algorithm 1 of arXiv 1907.08610, written out in NumPy for plain gradient descent."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from engine.config import ModelSection, RunConfig, TrainingSection
from engine.models.fine_tuning import FullTuning
from engine.optim.build import build_updating
from engine.optim.lookahead import Lookahead
from tests.streaming.models import tiny_model

RATE, STEPS, ALPHA = 0.1, 3, 0.3


def algorithm_1(start, gradients):
    """Weights that each gradient is taken at next: phi_0, then one for each update of the inner optimiser."""
    slow, fast, found = start.copy(), start.copy(), [start.copy()]
    for number, gradient in enumerate(gradients, 1):
        fast = fast - RATE * gradient
        if number % STEPS == 0:
            slow = slow + ALPHA * (fast - slow)
            fast = slow.copy()
        found.append(fast.copy())
    return found


def gradients_of(updates):
    return np.random.default_rng(5).normal(size=(updates, 4, 3))


def followed(parameter):
    optimizer = torch.optim.SGD([parameter], lr=RATE)
    lookahead = Lookahead({"w": parameter}, STEPS, ALPHA)
    optimizer.register_step_post_hook(lambda *_: lookahead.after_step())
    return optimizer, lookahead


def update(optimizer, parameter, gradient):
    parameter.grad = torch.from_numpy(gradient.copy())
    optimizer.step()
    return parameter.detach().numpy().copy()


def test_weights_of_three_rounds():
    """The slow weights of one round are where the next one begins."""
    gradients = gradients_of(3 * STEPS + 1)
    start = np.random.default_rng(6).normal(size=(4, 3))
    parameter = nn.Parameter(torch.from_numpy(start.copy()))
    optimizer, _ = followed(parameter)
    wanted = algorithm_1(start, gradients)
    for gradient, expected in zip(gradients, wanted[1:], strict=True):
        np.testing.assert_allclose(update(optimizer, parameter, gradient), expected, rtol=1e-12)


@pytest.mark.parametrize("stop", [1, STEPS - 1, STEPS, STEPS + 2])
def test_a_state_that_is_read_back_goes_on_in_the_same_round(stop):
    gradients, start = gradients_of(2 * STEPS + 1), np.ones((4, 3))
    parameter = nn.Parameter(torch.from_numpy(start.copy()))
    optimizer, lookahead = followed(parameter)
    for gradient in gradients[:stop]:
        update(optimizer, parameter, gradient)
    state = {name: value.clone() if torch.is_tensor(value) else value for name, value in lookahead.state_dict().items()}
    again = nn.Parameter(parameter.detach().clone())
    optimizer, lookahead = followed(again)
    lookahead.load_state_dict(state)
    for number, gradient in enumerate(gradients[stop:], stop + 1):
        np.testing.assert_allclose(
            update(optimizer, again, gradient), algorithm_1(start, gradients)[number], rtol=1e-12
        )


def test_a_model_in_16_bits_computes_with_the_weights_after_the_round():
    """Masters are followed, and what the model computes with is published after them, in each update."""
    model = tiny_model("qwen2").bfloat16()
    tuning = FullTuning(model, torch.device("cpu"))
    training = TrainingSection(method="full", lookahead_steps=2, lookahead_alpha=0.25, learning_rate=0.05)
    config = RunConfig(model=ModelSection(precision="bf16"), training=training)
    updating = build_updating(tuning, config, total_steps=8, tokens_per_update=64)
    copies = dict(model.named_parameters())
    slow = {name: master.detach().clone() for name, master in tuning.weights.items()}
    for number in range(1, 5):
        before = {name: master.detach().clone() for name, master in tuning.weights.items()}
        for master in tuning.weights.values():
            master.grad = torch.ones_like(master)
        updating.optimizer.step()
        for name, master in tuning.weights.items():
            assert not torch.equal(master, before[name])
            assert torch.equal(copies[name], master.bfloat16()), (number, name)
        if number % 2 == 0:
            # A round's weights lie between those that it began with and those that AdamW came to.
            for name, master in tuning.weights.items():
                assert torch.equal(updating.stateful["lookahead"].state_dict()[name], master)
                assert (master - slow[name]).abs().max() < 2 * 0.05 * 0.3
                slow[name] = master.detach().clone()
