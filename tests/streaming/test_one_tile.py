"""A context that is a single tile: nothing travels home and back, and layers may keep their activations."""

from __future__ import annotations

import pytest
import torch

from engine.errors.planning import StreamPlanError
from engine.plan.stream_plan import StreamPlan
from engine.streaming.step import StreamedStep
from tests.streaming.models import FAMILIES, tiny_model
from tests.streaming.reference import streamed, whole_sequence, worst_error
from tests.streaming.test_adapters import _adapt, _quantise

CPU = torch.device("cpu")
STARTS = (0, 5, 6, 48, 70)


def _tokens(n):
    return torch.randint(0, 97, (n,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("keep", [0, 1, 99])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stash": False},
        {"checkpoint_every": 2},
        {"hidden_home": "gpu"},
        {"hidden_home": "disk", "stash_home": "disk"},
    ],
)
@pytest.mark.parametrize("family", ["qwen2", "gemma3_text", "phi"])
def test_gradient_of_every_option(family, options, keep, tmp_path):
    model = tiny_model(family)
    expected_loss, expected = whole_sequence(model, _tokens(77), STARTS)
    plan = StreamPlan(tile=128, keep_layers=keep, loss_piece=20, **options)
    with StreamedStep(model, plan, device=CPU, spill_directory=tmp_path) as step:
        evaluated = step.evaluate(_tokens(77), document_starts=STARTS).loss_sum
        for _ in range(2):
            loss, gradients = streamed(step, _tokens(77), document_starts=STARTS)
            assert loss == pytest.approx(expected_loss, rel=1e-5)
            error, name = worst_error(gradients, expected)
            assert error < 1e-5, name
    assert evaluated == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("mixtral", "qwen3_moe")])
def test_adapter_gradient_with_kept_activations(family, quantised):
    base = tiny_model(family)
    if quantised and family in ("qwen2", "phi"):
        base = _quantise(base)
    model = _adapt(base)
    expected_loss, expected = whole_sequence(model, _tokens(77))
    weights = "nf4" if quantised and family in ("qwen2", "phi") else "resident"
    with StreamedStep(model, StreamPlan(tile=128, keep_layers=2, weights=weights), device=CPU) as step:
        loss, gradients = streamed(step, _tokens(77))
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    error, name = worst_error(gradients, expected)
    assert error < 1e-5, name


def test_a_longer_context_keeps_nothing():
    model = tiny_model("qwen2")
    expected_loss, expected = whole_sequence(model, _tokens(77))
    with StreamedStep(model, StreamPlan(tile=16, key_block=32, keep_layers=2), device=CPU) as step:
        loss, gradients = streamed(step, _tokens(77))
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert worst_error(gradients, expected)[0] < 1e-5


def test_layers_with_dropout_draw_once():
    model = _adapt(tiny_model("qwen2"), lora_dropout=0.3)
    results = []
    for keep in (0, 2):
        with StreamedStep(model, StreamPlan(tile=128, keep_layers=keep), device=CPU) as step:
            torch.manual_seed(0)
            results.append(streamed(step, _tokens(77)))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    assert worst_error(results[0][1], results[1][1])[0] < 1e-5


def test_weights_that_are_streamed_keep_no_activations():
    with pytest.raises(StreamPlanError, match="keep_layers with weights streamed"):
        StreamPlan(keep_layers=1, weights="streamed")
