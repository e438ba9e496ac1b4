"""Attention with capped scores: by its definition, by tiles, and in whole models against transformers' eager one."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from engine.attention import softcapped
from engine.attention.softcapped import SoftcappedAttention
from engine.data.windows import Window
from engine.errors import EliteError
from engine.generation.forward import TiledForward
from engine.plan.stream_plan import StreamPlan
from engine.steps.whole_step import WholeSequenceStep
from engine.streaming.step import StreamedStep
from engine.verify.double_precision import DoublePrecision
from engine.verify.small import Unbothered

CAP = 1.5
PLANS = (StreamPlan(tile=16, key_block=32, loss_piece=7), StreamPlan(tile=128, key_block=128, stash=False))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("at_once", [40, 1 << 20])
def test_it_is_what_its_definition_says(causal, at_once, monkeypatch):
    monkeypatch.setattr(softcapped, "SCORES_AT_ONCE", at_once)
    torch.manual_seed(0)
    q, k, v = (torch.randn((1, heads, 9, 6), dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2))
    scores = CAP * torch.tanh(0.7 * q @ k.repeat_interleave(2, 1).transpose(2, 3) / CAP)
    if causal:
        scores = scores.masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf)
    wanted = scores.softmax(-1) @ v.repeat_interleave(2, 1)
    grad = torch.randn_like(wanted)
    expected = torch.autograd.grad(wanted, (q, k, v), grad)
    backend, how = SoftcappedAttention(CAP), {"causal": causal, "scale": 0.7}
    with torch.no_grad():
        out, logsumexp = backend.forward(q, k, v, **how)
        found = backend.backward(grad, q, k, v, out, logsumexp, **how)
    torch.testing.assert_close(out, wanted.detach())
    torch.testing.assert_close(logsumexp, scores.logsumexp(-1).detach())
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want)


def test_autocast_leaves_the_scores_in_fp32():
    torch.manual_seed(0)
    q, k, v = (torch.randn((1, heads, 33, 16)).bfloat16() for heads in (4, 2, 2))
    plain = SoftcappedAttention(CAP).forward(q, k, v, causal=True, scale=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = SoftcappedAttention(CAP).forward(q, k, v, causal=True, scale=1.0)
    assert torch.equal(found[0], plain[0])
    assert torch.equal(found[1], plain[1])


@pytest.fixture(scope="module")
def model():
    config = AutoConfig.for_model(
        "gemma2",
        vocab_size=89,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        intermediate_size=40,
        sliding_window=11,
        query_pre_attn_scalar=2,
        attn_logit_softcapping=CAP,
        final_logit_softcapping=4.0,
        initializer_range=0.4,
        attention_dropout=0.0,
    )
    torch.manual_seed(4)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float64, attn_implementation="eager").train()


def taken(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def reference(model, ids, starts):
    total = torch.zeros((), dtype=torch.float64)
    with DoublePrecision():  # transformers takes the softmax and norms in fp32
        for start, stop in pairwise((*starts, len(ids))):
            logits = model(input_ids=ids[None, start:stop], use_cache=False).logits[0, :-1]
            loss = functional.cross_entropy(logits, ids[start + 1 : stop], reduction="sum")
            (loss / (len(ids) - len(starts))).backward()
            total += loss.detach()
    return float(total), taken(model)


@pytest.mark.parametrize("starts", [(0,), (0, 6, 41)])
def test_gemma2_gets_the_gradients_of_transformers(model, starts):
    ids = torch.randint(3, 89, (70,), generator=torch.Generator().manual_seed(3))
    wanted = reference(model, ids, starts)
    found = {}
    with DoublePrecision():
        for plan in PLANS:
            with StreamedStep(model, plan, device=torch.device("cpu")) as step:
                found[plan.tile] = step.run(ids, document_starts=starts).loss_sum, taken(model)
        for kernel in ("eager", "sdpa"):  # SDPA alone would leave the caps out
            model.config._attn_implementation = kernel
            step = WholeSequenceStep(model, recompute=False)
            loss = step.run([Window(ids.numpy(), starts)], 1 / (70 - len(starts)), Unbothered()).loss_sum
            step.close()
            found[kernel] = loss, taken(model)
    model.config._attn_implementation = "eager"
    for how, (loss, gradients) in found.items():
        assert loss == pytest.approx(wanted[0], rel=1e-7), how
        for name, want in wanted[1].items():
            assert (gradients[name] - want).norm() <= 1e-6 * want.norm(), (how, name)


@torch.no_grad()
def test_gemma2_writes_text_with_a_cache(model):
    ids = torch.randint(3, 89, (70,), generator=torch.Generator().manual_seed(3))
    wanted = model.eval()(input_ids=ids[None], use_cache=False).logits[0, 64:]
    forward = TiledForward(model, 70, tile=16, page=32)
    found = [forward.advance(ids[:65]), *(forward.advance(ids[at : at + 1]) for at in range(65, 70))]
    torch.testing.assert_close(torch.stack(found).double(), wanted, rtol=1e-4, atol=1e-4)
    model.train()


def test_several_ranks_are_refused_by_name(model):
    with pytest.raises(EliteError, match="attn_logit_softcapping"):
        StreamedStep(model, PLANS[0], device=torch.device("cpu"), sharding=object())
