"""A step that goes on from a layer boundary of its backward pass gives the whole step's gradient, to the bit."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.plan.stream_plan import StreamPlan
from engine.streaming.boundary import retile
from engine.streaming.step import StepCancelled, StreamedStep
from tests.streaming.models import tiny_model

CPU = torch.device("cpu")
TOKENS = torch.randint(0, 97, (90,), generator=torch.Generator().manual_seed(3))
STARTS = (0, 40)
BASE = StreamPlan(tile=16, key_block=32, loss_piece=16)
PLANS = {
    "stash": BASE,
    "no stash": dataclasses.replace(BASE, stash=False),
    "every second layer": dataclasses.replace(BASE, checkpoint_every=2),
    "every third layer, no stash": dataclasses.replace(BASE, checkpoint_every=3, stash=False),
    "disk": dataclasses.replace(BASE, hidden_home="disk", stash_home="disk"),
    "attention outputs on the disk": dataclasses.replace(BASE, stash_home="disk"),
    "8 bits": dataclasses.replace(BASE, activation_bits=8),
    "one tile, two layers kept": dataclasses.replace(BASE, tile=128, key_block=128, keep_layers=2),
    "weights streamed": dataclasses.replace(BASE, weights="streamed"),
}


def model_with_dropout(family="llama"):
    model = tiny_model(family, num_hidden_layers=5)
    for layer in model.model.layers:
        layer.mlp.down_proj = torch.nn.Sequential(layer.mlp.down_proj, torch.nn.Dropout(0.1))
    return model


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def keep(point):
    """As a disk would: nothing of the running step is shared."""
    tiles = [tile.clone() for tile in point.gradient()]
    return dataclasses.replace(point, gradient=lambda: iter(tiles))


def cut_off(model, plan, folder, boundaries):
    """The last boundary before a step was cancelled after so many, and the gradients at that time."""
    points, kept = [], {}

    def boundary(point):
        points.append(keep(point))
        kept.update(gradients(model))

    with StreamedStep(model, plan, device=CPU, spill_directory=folder) as step:
        torch.manual_seed(5)
        with pytest.raises(StepCancelled):
            step.run(
                TOKENS,
                document_starts=STARTS,
                boundary=boundary,
                cancelled=lambda: len(points) >= boundaries,
            )
    return points[-1], kept


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("dropout", [False, True])
def test_killed_at_every_layer_boundary(tmp_path, name, dropout):
    def make():
        torch.manual_seed(11)
        return model_with_dropout() if dropout else tiny_model("llama", num_hidden_layers=5)

    plan = PLANS[name]
    if dropout and plan.weights == "streamed":
        pytest.skip("covered without")
    whole = make()
    with StreamedStep(whole, plan, device=CPU, spill_directory=tmp_path) as step:
        torch.manual_seed(5)
        expected = step.run(TOKENS, document_starts=STARTS)
        after = torch.get_rng_state()

    for boundaries in range(1, 6):
        point, kept = cut_off(make(), plan, tmp_path, boundaries)
        assert point.layer == 6 - boundaries
        fresh = make()
        for parameter_name, parameter in fresh.named_parameters():
            parameter.grad = kept.get(parameter_name)
        with StreamedStep(fresh, plan, device=CPU, spill_directory=tmp_path) as step:
            torch.manual_seed(999)
            outcome = step.run(TOKENS, document_starts=STARTS, resumed=point)
        assert outcome.loss_sum == expected.loss_sum
        assert outcome.predicted == expected.predicted
        assert torch.equal(torch.get_rng_state(), after)
        for parameter_name, gradient in gradients(whole).items():
            assert torch.equal(fresh.get_parameter(parameter_name).grad, gradient), parameter_name


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 12))
def test_rows_keep_their_order_in_other_tiles(lengths, tile):
    rows = torch.arange(sum(lengths))[:, None]
    wanted = [min(tile, len(rows) - start) for start in range(0, len(rows), tile)]
    pieces = list(retile(iter(rows.split(lengths)), wanted))
    assert [len(piece) for piece in pieces] == wanted
    assert torch.equal(torch.cat(pieces), rows)
    with pytest.raises(ValueError, match="too short"):
        list(retile(iter(rows.split(lengths)), [*wanted, 1]))
