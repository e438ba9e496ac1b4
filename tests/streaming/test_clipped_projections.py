"""Layers that change the output of an adapted projection in place, against plain transformers and PEFT."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from engine.models.families import Family, admit
from engine.plan.stream_plan import StreamPlan
from engine.streaming.step import StreamedStep

STARTS = (0, 4, 5, 19)
LENGTH = 23


@pytest.mark.parametrize("clip", [0.5, None])
@pytest.mark.parametrize("family", ["olmo", "olmoe"])
def test_gradients_of_projections_that_are_clipped(
    family: str, clip: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.models.families.FAMILIES", {})
    torch.manual_seed(3)
    config = AutoConfig.for_model(
        family,
        vocab_size=61,
        hidden_size=24,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=3,
        num_experts_per_tok=2,
        clip_qkv=clip,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,
        attn_implementation="sdpa",
        experts_implementation="eager",
    )
    adapter = LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], lora_dropout=0.0)
    model = get_peft_model(AutoModelForCausalLM.from_config(config).double(), adapter).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    ids = torch.randint(3, 61, (LENGTH,))

    losses = []
    for start, end in zip(STARTS, (*STARTS[1:], LENGTH), strict=True):
        logits = model(input_ids=ids[None, start:end], use_cache=False).logits[0]
        losses.append(functional.cross_entropy(logits[:-1], ids[start + 1 : end], reduction="sum"))
    mean = torch.stack([loss for loss in losses if not loss.isnan()]).sum() / (LENGTH - len(STARTS))
    wanted = dict(zip(trained, torch.autograd.grad(mean, list(trained.values())), strict=True))

    admit(family, Family())
    with StreamedStep(model, StreamPlan(tile=6, key_block=6, loss_piece=5), device=torch.device("cpu")) as step:
        outcome = step.run(ids, document_starts=STARTS)
    assert outcome.loss_sum / outcome.predicted == pytest.approx(mean.item(), rel=1e-12)
    for name, parameter in trained.items():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-9, atol=1e-12, msg=name)
