"""A sequence from inputs on the device alone: the loss and gradient of the streamed step."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from engine.attention.cpu import CpuFlash
from engine.config import LoraSection
from engine.models import families
from engine.models.adapter import attach_adapter, trainable
from engine.plan.stream_plan import StreamPlan
from engine.streaming import step_graph
from engine.streaming.lone_tile import LoneInputs, lone_step, refusal
from engine.streaming.step import StreamedStep, next_token_labels
from engine.streaming.step_graph import ShortSequence, StepGraphs
from tests.streaming import models
from tests.streaming.models import tiny_model

N = 90
CPU = torch.device("cpu")
PLAN = StreamPlan(tile=N, key_block=N, keep_layers=99, loss_piece=32)


def adapted(family="qwen2", lora=None, **changes):
    base = tiny_model(family, **changes).requires_grad_(False)
    model = attach_adapter(base, LoraSection(rank=4, **(lora or {})), seed=0).train()
    torch.manual_seed(1)
    for parameter in trainable(model).values():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def sequence(starts):
    ids = torch.randint(3, 97, (N,), generator=torch.Generator().manual_seed(2))
    positions = torch.cat([torch.arange(b - a) for a, b in pairwise((*starts, N))])
    return ShortSequence(ids=ids, labels=next_token_labels(ids, starts), positions=positions, starts=starts)


def gradients(model):
    return {name: p.grad.clone() for name, p in trainable(model).items()}


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "olmo2", "granite"])
@pytest.mark.parametrize("starts", [(0,), (0, 1, 40, 77)])
def test_loss_and_gradient_are_those_of_the_streamed_step(family, starts):
    model, given = adapted(family), sequence(starts)
    with StreamedStep(model, PLAN, device=CPU, label_smoothing=0.1) as step:
        outcome = step.run(given.ids, scale=0.3, document_starts=starts)
        wanted = gradients(model)
        model.zero_grad()
        borders = (*starts, N)
        inputs = LoneInputs(
            ids=given.ids, labels=given.labels, positions=given.positions, scale=torch.tensor(0.3),
            documents=CpuFlash(), borders=borders,
        )  # fmt: skip
        loss = lone_step(step.streamed, inputs, 0.1)
        assert loss.item() == pytest.approx(outcome.loss_sum, rel=1e-5)
        for name, gradient in gradients(model).items():
            torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-6)
        # A second one adds to the first.
        lone_step(step.streamed, inputs, 0.1)
        for name, gradient in gradients(model).items():
            torch.testing.assert_close(gradient, 2 * wanted[name], rtol=1e-4, atol=2e-6)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("lora", "plan", "why"),
    [
        ({"dropout": 0.1}, PLAN, "dropout"),
        ({}, StreamPlan(tile=N, key_block=N, keep_layers=2), "not every layer"),
    ],
)
def test_what_draws_numbers_or_recomputes_is_refused(lora, plan, why):
    with StreamedStep(adapted(lora=lora), plan, device=CPU) as step:
        assert why in refusal(step.streamed)


@pytest.mark.parametrize(
    ("family", "changes", "why"),
    [
        ("qwen3_moe", {}, "experts"),
        ("qwen3_moe", {"output_router_logits": True}, "auxiliary loss"),
        ("aria_text", {"moe_num_experts": 4, "moe_topk": 2}, "experts"),
    ],
)
def test_experts_are_refused_by_whatever_name(family, changes, why, monkeypatch):
    monkeypatch.setitem(families.FAMILIES, family, families.Family(shape={"adapts_mlp": False}))
    monkeypatch.setitem(models._SPECIFIC, family, models._SPECIFIC.get(family, {}))
    with StreamedStep(adapted(family, **changes), PLAN, device=CPU) as step:
        assert why in refusal(step.streamed)


def test_a_gradient_that_differs_is_found():
    zeros, ones = [torch.zeros(4)], [torch.ones(4)]
    assert step_graph._difference(1.0, 1.0, ones, ones) == ""
    assert "loss" in step_graph._difference(1.01, 1.0, ones, ones)
    assert "loss" in step_graph._difference(float("nan"), 1.0, ones, ones)
    assert "gradient" in step_graph._difference(1.0, 1.0, zeros, ones)
    assert "gradient" in step_graph._difference(1.0, 1.0, ones, [None])


def test_without_a_gpu_the_ordinary_step_runs():
    model = adapted()
    with StreamedStep(model, PLAN, device=CPU) as step:
        graphs = StepGraphs(step.streamed, list(trainable(model).values()), 0.0)
        assert not graphs.active
        assert graphs.run(sequence((0,)), 1.0, lambda: step.run(sequence((0,)).ids, scale=1.0)) > 0
