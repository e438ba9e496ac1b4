"""Settings that layers have each for themselves: Gemma 4's heads, narrow within its windows and wide elsewhere."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from engine.attention import select
from engine.attention.cpu import CpuFlash
from engine.errors import EliteError
from engine.generation.forward import open_forward
from engine.models import families
from engine.models.grouped_heads import pool_key_value_heads
from engine.plan.stream_plan import StreamPlan
from engine.streaming.step import StreamedStep

NARROW, WIDE = 8, 24


def gemma4():
    config = AutoConfig.for_model(
        "gemma4_text",
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_global_key_value_heads=2,
        attention_k_eq_v=True,
        head_dim=NARROW,
        global_head_dim=WIDE,
        hidden_size_per_layer_input=0,
        sliding_window=10,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager")


class Seeing(CpuFlash):
    """A kernel that remembers the widths of the keys that it was called with."""

    def __init__(self):
        super().__init__()
        self.widths = set()

    def forward(self, q, k, v, **how):
        self.widths.add(k.shape[-1])
        return super().forward(q, k, v, **how)

    def backward(self, grad_out, q, k, *rest, **how):
        self.widths.add(k.shape[-1])
        return super().backward(grad_out, q, k, *rest, **how)


@pytest.fixture
def chosen(monkeypatch):
    """The kernels that were chosen, by the number of key heads and the width that they were chosen for."""
    monkeypatch.setitem(families.FAMILIES, "gemma4_text", families.Family())
    found = {}

    def choose(device, dtype, heads, kv_heads, head_dim):
        return found.setdefault((kv_heads, head_dim), Seeing())

    monkeypatch.setattr(select, "select_backend", choose)
    return found


def test_each_width_of_heads_has_a_kernel_of_its_own_in_a_step(chosen):
    with StreamedStep(gemma4(), StreamPlan(tile=8, key_block=16), device=torch.device("cpu")) as step:
        step.run(torch.randint(1, 61, (30,)))
    assert {shape: kernel.widths for shape, kernel in chosen.items()} == {(4, NARROW): {NARROW}, (2, WIDE): {WIDE}}


def test_each_width_of_heads_has_a_kernel_of_its_own_in_generation(chosen):
    open_forward(gemma4().eval(), 30, tile=8, page=16).advance(torch.randint(1, 61, (20,)))
    assert {shape: kernel.widths for shape, kernel in chosen.items()} == {(4, NARROW): {NARROW}, (2, WIDE): {WIDE}}


def test_heads_of_several_numbers_are_not_pooled():
    with pytest.raises(EliteError, match="different numbers of key heads"):
        pool_key_value_heads(gemma4(), 2)
