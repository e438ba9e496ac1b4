"""Scales of 4-bit weights that are unpacked together are those that are unpacked one by one."""

from __future__ import annotations

import copy

import pytest
import torch

from engine.plan.stream_plan import StreamPlan
from engine.streaming.block_scales import BlockScales
from engine.streaming.linears import ExpandedWeights, FrozenLinears
from engine.streaming.step import StreamedStep
from tests.streaming.models import tiny_model
from tests.streaming.reference import streamed, whole_sequence, worst_error
from tests.streaming.test_adapters import _adapt, _quantise

WIDE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "num_attention_heads": 4}


def _states(*shapes, nested=True):
    from bitsandbytes.functional import quantize_4bit

    torch.manual_seed(0)
    made = [quantize_4bit(torch.randn(shape), compress_statistics=nested, quant_type="nf4") for shape in shapes]
    return [weight for weight, _ in made], [state for _, state in made]


def test_the_same_weights_bit_by_bit():
    from bitsandbytes.functional import dequantize_4bit

    weights, states = _states((128, 128), (256, 128), (128, 384))
    expected = [dequantize_4bit(weight, copy.deepcopy(state)) for weight, state in zip(weights, states, strict=True)]
    assert BlockScales.joinable(states)
    scales = BlockScales(states)
    for _ in range(2):
        for weight, state, want in zip(weights, scales.unpacked(), expected, strict=True):
            assert torch.equal(dequantize_4bit(weight, state), want)
        scales.drop()
    for weight, state, want in zip(weights, states, expected, strict=True):
        assert torch.equal(dequantize_4bit(weight, state), want)  # the model's own states still serve


@pytest.mark.parametrize(
    ("shapes", "nested"), [([(128, 128)], True), ([(128, 128), (128, 64)], True), ([(128, 128), (128, 128)], False)]
)
def test_what_is_left_as_it_is(shapes, nested):
    """A matrix alone, scales whose blocks reach into the next matrix, scales in full."""
    assert not BlockScales.joinable(_states(*shapes, nested=nested)[1])


def test_gradient_with_joined_scales():
    model = _adapt(_quantise(tiny_model("qwen2", **WIDE, num_key_value_heads=4)))
    tokens = torch.randint(0, 97, (77,), generator=torch.Generator().manual_seed(1))
    expected_loss, expected = whole_sequence(model, tokens)
    linears = FrozenLinears(model.get_base_model().model.layers, "qwen2")
    assert all(scales is not None for scales in ExpandedWeights(linears)._scales)
    linears.close()
    for tile in (16, 128):
        plan = StreamPlan(tile=tile, key_block=128, weights="nf4")
        with StreamedStep(model, plan, device=torch.device("cpu")) as step:
            loss, gradients = streamed(step, tokens)
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        error, name = worst_error(gradients, expected)
        assert error < 1e-5, name
