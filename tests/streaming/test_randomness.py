"""Random numbers in a streamed step: one function and its gradient, other numbers for every window, layer and tile.

The references know nothing of keys: they replay what the forward pass drew, or differentiate by differences.
"""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

from engine.models.neftune import add_embedding_noise
from engine.plan.stream_plan import StreamPlan
from engine.randomness import KeyedGenerators, derive_seed
from engine.streaming.sequence_run import next_token_labels
from engine.streaming.step import StepCancelled, StreamedStep
from tests.streaming.models import tiny_model

CPU = torch.device("cpu")
TOKENS = torch.randint(0, 97, (90,), generator=torch.Generator().manual_seed(3))
TILED = StreamPlan(tile=16, key_block=32, loss_piece=16)
PLANS = {
    "stash": TILED,
    "no stash": dataclasses.replace(TILED, stash=False, tile=13),
    "every second layer": dataclasses.replace(TILED, checkpoint_every=2),
    "no stash, every third layer": dataclasses.replace(TILED, stash=False, checkpoint_every=3),
    "one tile, a layer kept": StreamPlan(tile=128, key_block=128, keep_layers=1),
}


class Noise(nn.Module):
    """Multiplies by noise; no class that anything could look for. Records what it draws, or replays a record."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.record, self.replay = inner, [], None

    @property
    def weight(self):
        return self.inner.weight

    def forward(self, x):
        y = self.inner(x)
        drawn = self.replay if self.replay is not None else 0.5 + torch.rand_like(y)
        self.record.append(drawn.detach().clone())
        return y * drawn


def noisy(**changes):
    """An fp64 model with noise behind two parts of every layer, and on its embeddings."""
    model = tiny_model("llama", num_hidden_layers=4, dtype=torch.float64, **changes)
    for layer in model.model.layers:
        layer.mlp.down_proj = Noise(layer.mlp.down_proj)
        layer.self_attn.q_proj = Noise(layer.self_attn.q_proj)
    model.model.embed_tokens = Noise(model.model.embed_tokens)
    return model


def noises(model):
    return [module for module in model.modules() if isinstance(module, Noise)]


def streamed(model, plan, seed=5, **options):
    model.zero_grad()
    torch.manual_seed(seed)
    with StreamedStep(model, plan, device=CPU) as step:
        step.wide_gradients.clear()
        outcome = step.run(TOKENS, scale=1.0, **options)
        found = {
            name: step.wide_gradients.sums.get(parameter, parameter.grad)
            for name, parameter in model.named_parameters()
        }
    return outcome.loss_sum, {name: gradient.clone() for name, gradient in found.items() if gradient is not None}


def whole(model):
    """Loss and gradient of plain transformers over the whole sequence."""
    model.zero_grad()
    logits = model(input_ids=TOKENS[None], use_cache=False).logits[0]
    loss = functional.cross_entropy(logits[:-1], TOKENS[1:], reduction="sum")
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", PLANS)
def test_every_pass_draws_what_the_forward_pass_drew(name):
    plan = PLANS[name]
    model = noisy()
    loss, gradients = streamed(model, plan)
    tiles = -(-len(TOKENS) // plan.tile)
    for noise in noises(model):
        assert len(noise.record) >= tiles
        noise.replay = torch.cat(noise.record[:tiles], dim=1)
    expected_loss, expected = whole(model)
    assert loss == pytest.approx(expected_loss, rel=1e-9)
    assert gradients.keys() == expected.keys()
    for parameter, gradient in expected.items():
        torch.testing.assert_close(gradients[parameter].double(), gradient, rtol=1e-6, atol=1e-7)


def test_no_two_of_a_step_s_draws_are_alike():
    """Over layers, parts of a layer, tiles and windows: every first draw is new, and so is every number in it."""
    model = noisy()
    torch.manual_seed(5)
    firsts = []
    with StreamedStep(model, TILED, device=CPU) as step:
        for _ in range(3):
            for noise in noises(model):
                noise.record.clear()
            step.run(TOKENS)
            firsts += [drawn.flatten()[:64] for noise in noises(model) for drawn in noise.record[:5]]
    for a, b in itertools.combinations(firsts, 2):
        assert not torch.equal(a, b)
    assert torch.corrcoef(torch.stack(firsts)).fill_diagonal_(0).abs().max() < 0.65  # 64 numbers: 5 deviations


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_noise_on_the_embeddings_is_new_in_every_window(dropout):
    """Also where nothing but the device's generator was drawn from in between."""
    model = tiny_model("llama", num_hidden_layers=2)
    for layer in model.model.layers:
        layer.mlp.down_proj = nn.Sequential(layer.mlp.down_proj, nn.Dropout(dropout))
    add_embedding_noise(model, 5.0, 64)
    embedding, seen = model.get_input_embeddings(), []
    embedding.register_forward_hook(
        lambda module, inputs, output: seen.append((output - functional.embedding(inputs[0], module.weight)).flatten())
    )
    model.requires_grad_(False)
    model.lm_head.weight.requires_grad_()
    torch.manual_seed(0)
    with StreamedStep(model, StreamPlan(tile=32, key_block=32), device=CPU) as step:
        for _ in range(4):
            step.run(TOKENS[:64])
    noise = torch.stack([tile.detach() for tile in seen if tile.numel()])
    assert len(noise) == 8
    for lag in range(-3, 4):
        pairs = [(a[max(lag, 0) : len(a) + min(lag, 0)], b[max(-lag, 0) : len(b) + min(-lag, 0)])
                 for a, b in itertools.combinations(noise, 2)]  # fmt: skip
        for a, b in pairs:
            assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.12


@pytest.mark.parametrize("plan", [TILED, dataclasses.replace(TILED, stash=False)])
def test_jitter_of_a_router_has_the_gradient_of_its_own_loss(plan, monkeypatch):
    """The reference multiplies by what the first pass over each layer and tile drew."""
    model = tiny_model("mixtral", dtype=torch.float64, router_jitter_noise=0.2)
    model.config._experts_implementation = "eager"  # the grouped product takes no fp64
    draw, record = torch.Tensor.uniform_, []

    def recorded(tensor, *reach):
        record.append(draw(tensor, *reach).clone())
        return record[-1].clone()

    monkeypatch.setattr(torch.Tensor, "uniform_", recorded)
    loss, gradients = streamed(model, plan)
    tiles = -(-len(TOKENS) // plan.tile)
    drawn = iter([torch.cat(record[i : i + tiles], dim=1) for i in range(0, 3 * tiles, tiles)])
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda *_: next(drawn))
    expected_loss, expected = whole(model)
    assert loss == pytest.approx(expected_loss, rel=1e-6)  # the router computes in fp32
    for parameter, gradient in expected.items():
        torch.testing.assert_close(gradients[parameter].double(), gradient, rtol=1e-3, atol=1e-4)


def test_numbers_follow_from_the_key_and_leave_the_generators_alone():
    """As an outsider would derive them: BLAKE2b of the key's parts, torch's own generator."""
    assert derive_seed(7, "layer", 1, 2) == derive_seed(7, "layer", 1, 2) < 2**64
    keys = [(seed, purpose, layer, tile)
            for seed in (0, 1, 2**32, 2**33) for purpose in ("layer", "embedding")
            for layer in range(12) for tile in range(12)]  # fmt: skip
    assert len({derive_seed(*key) & 0xFFFFFFFF for key in keys}) == len(keys)
    torch.manual_seed(4)
    before = torch.get_rng_state()
    generators = KeyedGenerators(CPU)
    with generators.restored():
        generators.seed(3, "x", watch=True)
        assert not generators.drew()
        first = torch.rand(4)
        assert generators.drew()
        generators.seed(3, "x")
        assert torch.equal(torch.rand(4), first)
    assert torch.equal(torch.get_rng_state(), before)


def point_after(model, plan, boundaries, drawn=True):
    points = []

    def boundary(point):
        tiles = [tile.clone() for tile in point.gradient()]
        points.append(dataclasses.replace(point, gradient=lambda: iter(tiles)))

    with pytest.raises(StepCancelled):
        streamed(model, plan, boundary=boundary, cancelled=lambda: len(points) >= boundaries)
    assert (points[-1].drawn_tile is not None) == drawn
    return points[-1]


def test_other_tiles_cannot_go_on_where_numbers_were_drawn():
    point = point_after(noisy(), TILED, 3)
    assert point.drawn_tile == 16
    with pytest.raises(ValueError, match="drawn for tiles of 16"):
        streamed(noisy(), dataclasses.replace(TILED, tile=32), resumed=point)
    plain = tiny_model("llama", num_hidden_layers=4)
    point = point_after(plain, TILED, 3, drawn=False)
    streamed(plain, dataclasses.replace(TILED, tile=32), resumed=point)


def test_one_tile_is_the_same_tile_whatever_it_could_hold():
    point = point_after(noisy(), StreamPlan(tile=128, key_block=128), 2)
    assert point.drawn_tile == len(TOKENS)
    loss, _ = streamed(noisy(), StreamPlan(tile=256, key_block=256), resumed=point)
    assert loss == point.loss_sum


def test_labels_are_not_shuffled():
    """The reference above predicts the next token, as the step does."""
    assert torch.equal(next_token_labels(TOKENS)[:-1], TOKENS[1:])
