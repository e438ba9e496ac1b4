"""Random numbers of an update follow from the run's seed and the update's position, in either way to compute it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from steps.test_whole_step import Quiet
from support.runs import build, new_session
from support.tiny import tiny_model

from engine.data.window_source import Update
from engine.models.fine_tuning import AdapterTuning
from engine.models.tiled_mlp import tile_mlps
from engine.models.transforms import transform
from engine.optim.noise import GradientNoise
from engine.plan.stream_plan import StreamPlan
from engine.steps.streamed_windows import StreamedWindows
from engine.steps.whole_step import WholeSequenceStep
from engine.training.optimizer_step import take_optimizer_step


@pytest.mark.parametrize("step_type", [WholeSequenceStep, "streamed"])
def test_an_update_draws_what_its_seed_and_position_say(tmp_path, step_type):
    """Whatever was drawn before it, and another seed or position draws otherwise."""

    def streamed(model, *, recompute):
        tuning = AdapterTuning(model)
        plan = StreamPlan(tile=16, key_block=32)
        return StreamedWindows(tuning, plan, device=torch.device("cpu"), spill_directory=tmp_path)

    def gradient(disturbance=0, seed=0, step=0):
        session = new_session(tmp_path, lora={"dropout": 0.3}, training={"neftune_alpha": 5.0})
        made = WholeSequenceStep if step_type is WholeSequenceStep else streamed
        parts, progress = build(session, step_type=made)
        parts = dataclasses.replace(parts, seed=seed)
        transform(parts.model, session.config.training, 64)
        progress.step = step
        torch.manual_seed(disturbance)
        before = torch.get_rng_state()
        found = take_optimizer_step(parts, progress, Update(windows=(0, 1), epoch=1.0), Quiet()).result.loss_sum
        assert torch.equal(torch.get_rng_state(), before)
        return found

    assert gradient() == gradient(disturbance=1)
    assert len({gradient(), gradient(seed=1), gradient(step=1), gradient(seed=2**32)}) == 4


def test_gradient_noise_of_every_seed_and_step_is_its_own():
    """torch's generator for the CPU takes 32 bits of a seed: all of them have to matter."""

    def noise(seed, step):
        parameters = [torch.nn.Parameter(torch.zeros(500)) for _ in range(2)]
        for parameter in parameters:
            parameter.grad = torch.zeros(500)
        GradientNoise(deviation=1.0, seed=seed)(parameters, step)
        return [parameter.grad for parameter in parameters]

    drawn = [one for seed in (0, 1, 7, 2**31) for step in (0, 1, 5) for one in noise(seed, step)]
    assert torch.corrcoef(torch.stack(drawn)).fill_diagonal_(0).abs().max() < 0.25
    assert torch.equal(noise(7, 5)[1], noise(7, 5)[1])


def test_a_tiled_mlp_repeats_what_any_module_drew():
    """Not only nn.Dropout draws: what the second pass over a tile draws is what the first one drew."""

    class Noise(torch.nn.Module):
        def forward(self, x):
            drawn.append(torch.rand_like(x))
            return x * drawn[-1]

    drawn = []
    model = tiny_model().train()
    mlp = model.model.layers[0].mlp
    mlp.down_proj = torch.nn.Sequential(mlp.down_proj, Noise())
    tile_mlps(model, tile=16)
    hidden = torch.randn(1, 32, 32, requires_grad=True)
    mlp(hidden).sum().backward()
    first, second, *again = drawn
    assert len(again) == 2
    assert any(torch.equal(again[0], one) for one in (first, second))
    assert any(torch.equal(again[1], one) for one in (first, second))
