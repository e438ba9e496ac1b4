"""Plans of models that store latents: what a token takes, beside keys and values of a model of the same heads."""

from __future__ import annotations

import dataclasses

import pytest
from transformers import AutoConfig

from engine.models.spec import as_spec
from engine.plan.memory import streamed_ledger
from engine.plan.stream_plan import StreamPlan
from engine.plan.workload import Workload
from engine.verify.observed_shape import observed_shape

LITE = {
    "hidden_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "intermediate_size": 512,
    "first_k_dense_replace": 2,
    "vocab_size": 1024,
    "kv_lora_rank": 512,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
"""The attention of DeepSeek-Coder-V2-Lite."""


@pytest.fixture(scope="module")
def spec():
    shape = observed_shape(AutoConfig.for_model("deepseek_v3", **LITE), adapts_mlp=True)
    return as_spec(shape, name="lite", family="deepseek_v3")


def test_a_token_takes_its_latents_and_their_gradients(spec):
    assert (spec.heads, spec.kv_heads, spec.head_dim, spec.value_dim) == (16, 16, 192, 128)
    assert dataclasses.astuple(spec.latent) == (576, 512, 16 * (128 + 128))
    work = Workload(spec=spec, context=100_000, compute_type="bf16", lora_parameters=1)
    plan = StreamPlan(tile=4096, key_block=8192)
    lines = {line.name: line.bytes for line in streamed_ledger(work, plan).lines}
    token = lines["keys and values of one layer"] + lines["their gradients, fp32"]
    assert token == 100_000 * 576 * (2 + 4)  # 3.4 KB
    assert lines["stash: keys and values"] == 2 * 100_000 * 576 * 2
    assert lines["stash: attention outputs and logsumexp"] == 2 * 100_000 * (16 * 128 * 2 + 16 * 4)


def test_a_model_of_grouped_heads_takes_what_it_took(spec):
    whole = dataclasses.replace(spec, latent=None, value_dim=None, kv_heads=4)
    assert (whole.stored_width, whole.output_width) == (2 * 4 * 192, 16 * 192)
