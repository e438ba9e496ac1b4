"""Tensors of logits that are alive at once in a head that changes its logits, counted operation by operation."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from engine.models.config_reader import spec_from_config
from engine.models.lm_head import split_head
from engine.plan.tile_peaks import tile_peaks
from engine.plan.workload import Workload
from engine.streaming import loss
from tests.plan.live_bytes import LiveBytes

TOKENS, VOCABULARY = 256, 4096
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "intermediate_size": 32, "pad_token_id": 0,
}  # fmt: skip


def _gradient_in_place(logits, *_):
    """Allocates what the kernel does: nothing of the logits' size."""
    logits.data.mul_(0.5)  # autograd does not hear of what the kernel writes either
    return logits.new_zeros((), dtype=torch.float32), logits


def _tensors_of_logits(family, monkeypatch, **changes):
    """Peak of the fused loss in tensors of logits, and what the plan counts."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SIZES, **changes})
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16).requires_grad_(requires_grad=False)
    head = split_head(model)[1]
    monkeypatch.setattr(loss, "_gradient_over_logits", _gradient_in_place)
    hidden = torch.randn(TOKENS, SIZES["hidden_size"], dtype=torch.bfloat16)
    labels = torch.zeros(TOKENS, dtype=torch.int64)
    monkeypatch.setattr(loss, "_has_fused_cross_entropy", lambda _: True)
    with LiveBytes("cpu") as counted:
        counted.ignore(*model.parameters())
        loss.loss_and_gradient(hidden, labels, head, piece=TOKENS, scale=1.0)
    spec = spec_from_config(config.to_dict(), name="")
    work = Workload(spec=spec, context=TOKENS, compute_type="bf16", lora_parameters=1, fused_loss=True)
    (peak,) = (moment for moment in tile_peaks(work, stash=False) if moment.at == "at the head")
    return counted.peak / (TOKENS * VOCABULARY * 2), peak.logit / 2


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("gemma2", {"final_logit_softcapping": 30.0}),
        ("granite", {"logits_scaling": 3.0}),
    ],
)
def test_the_fused_loss_holds_as_many_tensors_of_logits_as_the_plan_counts(family, changes, monkeypatch):
    held, counted = _tensors_of_logits(family, monkeypatch, **changes)
    assert held == pytest.approx(counted, rel=0.05)
