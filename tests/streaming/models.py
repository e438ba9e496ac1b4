"""Tiny random models of every supported family."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM

_COMMON = {
    "vocab_size": 97,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # Wider than usual: with near-uniform attention the gradients of q and k would be mostly rounding.
    "initializer_range": 0.15,
}

_SPECIFIC = {
    "ernie4_5": {"head_dim": 24},
    "exaone4": {"sliding_window": 20, "sliding_window_pattern": 2},
    "gemma": {"head_dim": 24},
    "gemma2": {"head_dim": 24, "sliding_window": 20, "attn_logit_softcapping": 5.0},
    "glm": {"head_dim": 24},
    "glm4": {"head_dim": 24},
    "granite": {
        "embedding_multiplier": 12.0,
        "logits_scaling": 8.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": 0.0625,
    },
    "ministral3": {"head_dim": 16},
    "olmo2": {},
    "olmo3": {"sliding_window": 20, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "seed_oss": {"head_dim": 24, "residual_dropout": 0.0, "attention_dropout": 0.0},
    "smollm3": {"no_rope_layers": [1, 0, 1]},
    "llama": {},
    "mistral": {"sliding_window": 24},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 24},
    "phi": {"num_key_value_heads": 4, "partial_rotary_factor": 0.5},
    "phi3": {"sliding_window": 40},
    "gemma3_text": {"head_dim": 16, "sliding_window": 20, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "starcoder2": {"sliding_window": 33, "residual_dropout": 0.0, "embedding_dropout": 0.0},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
    },
}

FAMILIES = tuple(_SPECIFIC)


def tiny_model(family: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes):
    """A causal language model of a family with three or four layers of width 64."""
    settings = {**_COMMON, **_SPECIFIC[family], **changes}
    if family == "gemma3_text":
        settings["num_hidden_layers"] = len(settings["layer_types"])
    config = AutoConfig.for_model(family, **settings)
    torch.manual_seed(seed)
    # SDPA leaves out the caps of attention scores.
    attention = "sdpa" if getattr(config, "attn_logit_softcapping", None) is None else "eager"
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    # Untouched initialisation leaves norms at one and biases at zero, where errors would hide.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.train()
