"""Pooled key heads: a model that transformers itself can make of the pooled configuration, or a refusal by name."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from engine.errors import EliteError
from engine.models.grouped_heads import pool_key_value_heads
from tests.streaming.models import tiny_model

HEADS, KEPT = 4, 2


def logits(model):
    ids = torch.randint(0, 97, (1, 30), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return model.eval()(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "starcoder2", "gemma3_text"])
def test_a_pooled_model_is_the_pooled_configuration_with_the_mean_of_each_group(family):
    pooled = tiny_model(family, num_key_value_heads=HEADS)
    weights = {name: value.clone() for name, value in pooled.state_dict().items()}
    pool_key_value_heads(pooled, KEPT)
    config = AutoConfig.for_model(**{**pooled.config.to_dict(), "num_key_value_heads": KEPT})
    wanted = AutoModelForCausalLM.from_config(config)
    for name, value in wanted.state_dict().items():
        if ".k_proj." in name or ".v_proj." in name:
            groups = weights[name].unflatten(0, (KEPT, HEADS // KEPT, -1))
            weights[name] = groups.mean(1).reshape(value.shape)
    wanted.load_state_dict(weights)
    torch.testing.assert_close(logits(pooled), logits(wanted), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "reason"),
    [("olmo2", "k_norm.weight has weights for each key head"), ("phi3", "no unquantised k_proj")],
)
def test_attention_that_is_more_than_projections_by_head_is_refused(family, reason):
    with pytest.raises(EliteError, match=reason):
        pool_key_value_heads(tiny_model(family, num_key_value_heads=HEADS), KEPT)


def test_layers_of_another_make_are_refused():
    config = AutoConfig.for_model("gpt2", n_embd=32, n_layer=2, n_head=HEADS, vocab_size=97)
    with pytest.raises(EliteError, match="self_attn"):
        pool_key_value_heads(AutoModelForCausalLM.from_config(config), KEPT)
