"""The auxiliary loss of routers, summed over tiles, layers and windows, is transformers' own of the whole sequence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers.models.mixtral import modeling_mixtral

from engine.data.windows import Window
from engine.errors import EliteError
from engine.models import families
from engine.models.families import setting_refusals
from engine.models.router_balance import RouterBalance, refuse_auxiliary_loss
from engine.plan.stream_plan import StreamPlan
from engine.steps.whole_step import WholeSequenceStep
from engine.streaming.step import StreamedStep
from engine.verify.double_precision import DoublePrecision
from tests.streaming.reference import streamed, worst_error
from tests.streaming.test_experts import CPU, TOKENS, model, plain_adapter

COEFFICIENT = 0.7  # the auxiliary loss is a large part of what is minimised


class _Unbothered:
    def progress(self, *_, **__):
        pass

    def stop_requested(self):
        return False


@pytest.fixture(autouse=True)
def admitted(monkeypatch):
    for family in ("laguna", "mellum", "qwen2_moe"):
        monkeypatch.setitem(families.FAMILIES, family, families.Family(shape={"adapts_mlp": False}))


def balanced(family):
    return plain_adapter(model(family, output_router_logits=True, router_aux_loss_coef=COEFFICIENT))


def reference(adapted, ids=TOKENS, weight=1.0):
    """transformers' own loss with labels: mean cross-entropy and auxiliary loss, and their gradient."""
    adapted.zero_grad()
    with DoublePrecision():
        found = adapted(input_ids=ids[None], labels=ids[None], use_cache=False, output_router_logits=True)
        (weight * found.loss).backward()
    gradients = {name: p.grad.clone() for name, p in adapted.named_parameters() if p.grad is not None}
    adapted.zero_grad()
    return float(found.loss), float(found.aux_loss), gradients


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "qwen2_moe", "mellum", "laguna"])
def test_tiles_add_up_to_the_whole_sequence(family):
    adapted = balanced(family)
    loss, auxiliary, expected = reference(adapted)
    assert auxiliary > 0.5
    plan = StreamPlan(tile=16, key_block=32, loss_piece=20)
    with DoublePrecision(), StreamedStep(adapted, plan, device=CPU) as step:
        outcome = step.run(TOKENS)
        gradients = {name: p.grad.clone() for name, p in adapted.named_parameters() if p.grad is not None}
    mean = outcome.loss_sum / outcome.predicted
    assert outcome.balance == pytest.approx(auxiliary, rel=1e-6)
    assert mean + COEFFICIENT * outcome.balance == pytest.approx(loss, rel=1e-6)
    assert worst_error(gradients, expected)[0] < 1e-6
    adapted.get_base_model().config.output_router_logits = False
    with DoublePrecision(), StreamedStep(adapted, plan, device=CPU) as step:
        _, without = streamed(step, TOKENS)
    assert worst_error(without, expected)[0] > 1e-3


@pytest.mark.parametrize(
    "options", [{"stash": False, "checkpoint_every": 2}, {"tile": 80, "key_block": 80, "keep_layers": 2}]
)
def test_other_layouts_count_each_row_once(options):
    adapted = balanced("qwen3_moe")
    _, auxiliary, expected = reference(adapted)
    plan = StreamPlan(**{"tile": 16, "key_block": 32, "loss_piece": 20, **options})
    with DoublePrecision(), StreamedStep(adapted, plan, device=CPU) as step:
        for _ in range(2):
            adapted.zero_grad()
            outcome = step.run(TOKENS)
            assert outcome.balance == pytest.approx(auxiliary, rel=1e-6)
    gradients = {name: p.grad for name, p in adapted.named_parameters() if p.grad is not None}
    assert worst_error(gradients, expected)[0] < 1e-6


def test_weights_change_no_balance():
    """Tokens of equal weight have the gradient of tokens without one, once divided by the sum of the weights."""
    adapted = balanced("qwen3_moe")
    _, _, expected = reference(adapted)
    targets = len(TOKENS) - 1
    with DoublePrecision(), StreamedStep(adapted, StreamPlan(tile=16, key_block=32), device=CPU) as step:
        step.run(TOKENS, coefficients=torch.full((len(TOKENS),), 0.125), scale=1 / (0.125 * targets))
    gradients = {name: p.grad for name, p in adapted.named_parameters() if p.grad is not None}
    assert worst_error(gradients, expected)[0] < 1e-6


def test_padding_is_not_counted():
    adapted = balanced("qwen3_moe")
    _, auxiliary, expected = reference(adapted, TOKENS[:61])
    labels = torch.cat([TOKENS[1:61], torch.full((15,), -100)])
    with DoublePrecision(), StreamedStep(adapted, StreamPlan(tile=16, key_block=32), device=CPU) as step:
        outcome = step.run(torch.nn.functional.pad(TOKENS[:61], (0, 14)), labels=labels, balanced=61)
    assert outcome.balance == pytest.approx(auxiliary, rel=1e-6)
    gradients = {name: p.grad for name, p in adapted.named_parameters() if p.grad is not None}
    assert worst_error(gradients, expected)[0] < 1e-6


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize("weights", [None, (0.25, 8.0)])
def test_whole_windows_have_it_too(weights, together, recompute):
    """Each window by itself, with the weight of its targets, whether they go through the model together or not."""
    adapted = balanced("qwen3_moe")
    parts = [TOKENS[:30], TOKENS[30:]]
    sums = [weight * (len(ids) - 1) for ids, weight in zip(parts, weights or (1, 1), strict=True)]
    expected = {}
    for ids, weight in zip(parts, sums, strict=True):
        _, _, found = reference(adapted, ids, weight=weight / sum(sums))
        for name, gradient in found.items():
            expected[name] = expected.get(name, 0) + gradient
    with DoublePrecision():
        step = WholeSequenceStep(adapted, recompute=recompute, micro_batch=together)
        windows = [Window(np.asarray(ids)) for ids in parts]
        if weights is not None:
            windows = [replace(w, weights=np.full(len(w), weight)) for w, weight in zip(windows, weights, strict=True)]
        step.run(windows, 1 / sum(sums), _Unbothered())
        step.close()
    gradients = {name: p.grad for name, p in adapted.named_parameters() if p.grad is not None}
    assert worst_error(gradients, expected)[0] < 1e-6


def test_it_is_planned_and_refused_where_no_sums_are_made():
    assert "streamed" not in setting_refusals({"output_router_logits": True})
    base = model("qwen3_moe", output_router_logits=True)
    assert RouterBalance.of(model("qwen3_moe")) is None
    with pytest.raises(EliteError, match="output_router_logits"):
        refuse_auxiliary_loss(base.config, "DeepSpeed ZeRO")
    with pytest.raises(EliteError, match="output_router_logits"):
        StreamedStep(base, StreamPlan(), device=CPU, sharding=object())


def test_another_familys_own_loss_is_refused(monkeypatch):
    base = model("mixtral", output_router_logits=True)
    assert RouterBalance.of(base) is not None
    monkeypatch.setattr(modeling_mixtral, "load_balancing_loss_func", lambda *_: 0)
    with pytest.raises(EliteError, match="auxiliary loss"):
        RouterBalance.of(base)
