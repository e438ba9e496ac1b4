"""Layers with sinks, with latent keys and values, whose widths differ, and with chunks.

The reference is plain transformers in fp64, one document at a time: its eager attention for sinks, whose softmax keeps
fp64, and SDPA for the others.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from engine.attention.rule import AttentionRule
from engine.attention.sinks import sink_gradient, with_sinks
from engine.data.windows import Window
from engine.errors import EliteError
from engine.models import families
from engine.models.shifted_attention import shift_attention
from engine.plan.stream_plan import StreamPlan
from engine.steps.whole_step import WholeSequenceStep
from engine.streaming.kv_cache import DeviceKvCache
from engine.streaming.step import StreamedStep

CPU = torch.device("cpu")
SIZES = {
    "vocab_size": 89,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LATENT = {
    "kv_lora_rank": 20,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "num_key_value_heads": 4,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 20, "n_routed_experts": 4, "n_group": 1, "topk_group": 1}
KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
FAMILIES = {
    "gpt_oss": {"head_dim": 16, "sliding_window": 13, "layer_types": KINDS, "num_local_experts": 4},
    "deepseek_v3": {**LATENT, **EXPERTS, "first_k_dense_replace": 1},
    "minicpm3": LATENT,
    "llama4_text": {
        "head_dim": 16,
        "attention_chunk_size": 13,
        "no_rope_layers": [1, 0, 1],
        "floor_scale": 9,
        "intermediate_size_mlp": 40,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
    },
}
STARTS = (0, 6, 7, 41)


def make(family, **changes):
    settings = {**SIZES, "num_experts_per_tok": 2, **FAMILIES[family], **changes}
    config = AutoConfig.for_model(family, **settings)
    torch.manual_seed(4)
    eager = family == "gpt_oss"
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float64, attn_implementation="eager" if eager else "sdpa"
    )
    model.config._experts_implementation = "eager"
    model = model.double().train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def with_adapter(model):
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    torch.manual_seed(6)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, dtype=torch.float64)
    return adapted


def tokens(n=61):
    return torch.randint(3, 89, (n,), generator=torch.Generator().manual_seed(2))


def expected(model, ids, starts):
    model.zero_grad()
    total = 0.0
    for start, stop in pairwise((*starts, len(ids))):
        if stop - start > 1:
            logits = model(input_ids=ids[None, start:stop], use_cache=False).logits[0, :-1]
            loss = functional.cross_entropy(logits.double(), ids[start + 1 : stop], reduction="sum")
            (loss / (len(ids) - len(starts))).backward()
            total += loss.item()
    return total, taken(model)


def taken(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def check(model, plan, starts=(0,), ids=None):
    ids = tokens() if ids is None else ids
    loss, gradients = expected(model, ids, starts)
    with StreamedStep(model, plan, device=CPU) as step:
        assert step.run(ids, document_starts=starts).loss_sum == pytest.approx(loss, rel=1e-6)
        found = taken(model)
    assert found.keys() == gradients.keys()
    scale = torch.stack([want.norm() for want in gradients.values()]).norm()
    for name, want in gradients.items():
        assert (found[name] - want).norm() < 1e-6 * (want.norm() + 1e-3 * scale), name
    return gradients


@pytest.fixture(autouse=True)
def _admitted(monkeypatch):
    monkeypatch.setattr(families, "FAMILIES", {**families.FAMILIES, **{name: families.Family() for name in FAMILIES}})


@pytest.mark.parametrize("starts", [(0,), STARTS], ids=["one document", "documents"])
@pytest.mark.parametrize(
    "plan",
    [
        {"tile": 10, "key_block": 16},
        {"tile": 9, "key_block": 16, "stash": False, "checkpoint_every": 2, "kv_home": "host"},
        {"tile": 64, "key_block": 64},
    ],
    ids=["stash", "recomputed", "one tile"],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_gets_its_gradient(family, plan, starts):
    gradients = check(make(family), StreamPlan(**plan), starts)
    if family == "gpt_oss":
        assert gradients["model.layers.1.self_attn.sinks"].abs().max() > 1e-6


@pytest.mark.parametrize("family", ["gpt_oss", "deepseek_v3"])
def test_an_adapter_gets_its_gradient_and_the_base_none(family):
    gradients = check(with_adapter(make(family)), StreamPlan(tile=10, key_block=16), STARTS)
    assert all("lora_" in name for name in gradients)
    assert any("kv_b_proj" in name for name in gradients) or family == "gpt_oss"


def test_latents_are_what_is_stored(monkeypatch):
    kept = set()
    append = DeviceKvCache.append

    def note(cache, start, k, v):
        kept.add((k.shape[1], k.shape[3], v.shape[3]))
        append(cache, start, k, v)

    monkeypatch.setattr(DeviceKvCache, "append", note)
    check(make("deepseek_v3"), StreamPlan(tile=10, key_block=16))
    assert kept == {(1, LATENT["kv_lora_rank"], LATENT["qk_rope_head_dim"])}


def test_dropout_of_an_expansion_is_refused():
    model = get_peft_model(make("minicpm3"), LoraConfig(r=4, lora_dropout=0.1, target_modules=["kv_b_proj"])).train()
    step = StreamedStep(model, StreamPlan(tile=10, key_block=16), device=CPU)
    with step, pytest.raises(EliteError, match=r"lora\.dropout"):
        step.run(tokens())
    model.eval()
    with StreamedStep(model, StreamPlan(tile=10, key_block=16), device=CPU) as step:
        step.evaluate(tokens())


def test_a_sink_is_a_key_without_a_value():
    """Against a softmax over one more column, with autograd."""
    torch.manual_seed(1)
    scores, v = torch.randn(1, 2, 5, 7, dtype=torch.float64), torch.randn(1, 2, 7, 3, dtype=torch.float64)
    sinks = torch.randn(2, dtype=torch.float64, requires_grad=True)
    wide = torch.cat([scores, sinks[None, :, None, None].expand(1, 2, 5, 1)], -1)
    wanted = wide.softmax(-1)[..., :-1] @ v
    out, logsumexp = with_sinks(scores.softmax(-1) @ v, scores.logsumexp(-1), sinks.detach())
    assert torch.allclose(out, wanted)
    assert torch.allclose(logsumexp, wide.logsumexp(-1))
    grad_out = torch.randn_like(out)
    (gradient,) = torch.autograd.grad(wanted, sinks, grad_out)
    assert torch.allclose(sink_gradient(grad_out, out, logsumexp, sinks.detach()), gradient)


def test_chunks_begin_again_with_each_document():
    rule = AttentionRule(scale=1.0, chunk=4)
    assert list(rule.borders((0, 6, 7), 13)) == [0, 4, 6, 7, 11]
    assert list(AttentionRule(scale=1.0).borders((0, 6), 9)) == [0, 6]


class _Silent:
    def progress(self, *_):
        pass

    def stop_requested(self):
        return False


@pytest.mark.parametrize("starts", [(0,), STARTS], ids=["one document", "documents"])
@pytest.mark.parametrize("family", ["gpt_oss", "deepseek_v3"])
def test_whole_windows(family, starts):
    model, ids = make(family), tokens()
    loss, gradients = expected(model, ids, starts)
    step = WholeSequenceStep(model, recompute=True)
    found = step.run([Window(ids.numpy(), starts)], 1 / (len(ids) - len(starts)), _Silent())
    step.close()
    assert found.loss_sum == pytest.approx(loss, rel=1e-6)
    got = taken(model)
    for name, want in gradients.items():
        assert (got[name] - want).norm() < 1e-6 * (want.norm() + 1e-3), name


@pytest.mark.parametrize("family", ["gpt_oss", "llama4_text"])
def test_shifted_groups_leave_out_neither_sinks_nor_chunks(family):
    with pytest.raises(EliteError, match="shifted"):
        shift_attention(make(family), context=32)
