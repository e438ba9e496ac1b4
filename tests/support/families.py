"""Makes tiny models of every registered family, in shapes of real files, and saves them with a tokenizer."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from support.exports import byte_level_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

_COMMON = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_ABSENT = object()
_KINDS = ["sliding_attention", "full_attention"] * 2
_FEW = {"num_experts_per_tok": 2}

ROWS: dict[str, list[dict[str, Any]]] = {
    "ernie4_5": [{"head_dim": 24, "tie_word_embeddings": True}, {"head_dim": 16, "use_bias": True}],
    "exaone4": [
        {"sliding_window": 20, "sliding_window_pattern": 2},
        {"sliding_window": None, "layer_types": ["full_attention"] * 4, "head_dim": 24, "tie_word_embeddings": True},
    ],
    "gemma": [{"head_dim": 24}, {"num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": False}],
    "gemma2": [{"head_dim": 16, "sliding_window": 20}],
    "gemma3_text": [
        {"head_dim": 16, "sliding_window": 20, "layer_types": _KINDS},
        {"head_dim": 24, "sliding_window": 20, "sliding_window_pattern": 2, "tie_word_embeddings": False},
    ],
    "glm": [{"head_dim": 16}, {"head_dim": 24, "attention_bias": False, "partial_rotary_factor": 0.5}],
    "glm4": [{"head_dim": 16}, {"head_dim": 24, "attention_bias": False, "tie_word_embeddings": True}],
    "granite": [
        {
            "embedding_multiplier": 12.0,
            "logits_scaling": 8.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.0625,
            "tie_word_embeddings": True,
        },
        {"attention_bias": True, "mlp_bias": True, "attention_multiplier": 0.25, "num_key_value_heads": _ABSENT},
    ],
    "llama": [
        {"num_key_value_heads": _ABSENT},
        {"attention_bias": True, "mlp_bias": True, "head_dim": 24, "tie_word_embeddings": True},
    ],
    "ministral3": [
        {"head_dim": 16},
        {
            "head_dim": 24,
            "sliding_window": 24,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e6,
                "factor": 16.0,
                "original_max_position_embeddings": 32,
                "llama_4_scaling_beta": 0.1,
            },
        },
    ],
    "mistral": [{"sliding_window": 24}, {"sliding_window": None, "head_dim": 40, "num_key_value_heads": 1}],
    "mixtral": [
        {"num_local_experts": 4, **_FEW},
        {"num_local_experts": 3, **_FEW, "sliding_window": 30, "head_dim": 24},
    ],
    "olmo2": [{}, {"num_key_value_heads": _ABSENT, "attention_bias": True}],
    "olmo3": [{"sliding_window": 20}, {"sliding_window": 24, "layer_types": _KINDS, "attention_bias": True}],
    "phi": [
        {"num_key_value_heads": _ABSENT, "partial_rotary_factor": 0.5, "resid_pdrop": 0.1},
        {"qk_layernorm": True, "partial_rotary_factor": 0.25},
    ],
    "phi3": [{"sliding_window": 40}, {"num_key_value_heads": _ABSENT, "partial_rotary_factor": 0.75}],
    "qwen2": [
        {"tie_word_embeddings": True},
        {"use_sliding_window": True, "sliding_window": 19, "max_window_layers": 2},
        {"use_sliding_window": True, "sliding_window": 11, "layer_types": _KINDS},
    ],
    "qwen3": [{"head_dim": 24}, {"num_key_value_heads": 4, "head_dim": 16, "attention_bias": True}],
    "qwen3_moe": [
        {"head_dim": 16, "num_experts": 4, **_FEW, "moe_intermediate_size": 32, "norm_topk_prob": True},
        {"head_dim": 24, "num_experts": 4, **_FEW, "moe_intermediate_size": 160, "decoder_sparse_step": 2},
        {"head_dim": 16, "num_experts": 6, **_FEW, "moe_intermediate_size": 32, "mlp_only_layers": [0, 3]},
        {"num_experts": 0, "moe_intermediate_size": 32, "use_sliding_window": True, "sliding_window": 30},
    ],
    "seed_oss": [
        {"head_dim": 24, "residual_dropout": 0.1, "attention_dropout": 0.1},
        {"head_dim": 16, "attention_out_bias": True, "mlp_bias": True, "attention_bias": False},
    ],
    "smollm3": [
        {"tie_word_embeddings": True},
        {"no_rope_layers": [1, 0, 1, 1], "use_sliding_window": True, "sliding_window": 20, "mlp_bias": True},
    ],
    "starcoder2": [
        {"sliding_window": 33, "residual_dropout": 0.1, "embedding_dropout": 0.1, "attention_dropout": 0.1},
        {"use_bias": False, "tie_word_embeddings": False, "residual_dropout": 0.0, "embedding_dropout": 0.0},
    ],
}
"""Settings of each family's models; the longer tests use the first of each."""

VARIANTS = [(family, number) for family, variants in ROWS.items() for number in range(len(variants))]


def tiny_config(family: str, number: int = 0, **changes: Any) -> Any:
    """Returns the configuration of one variant."""
    settings = {**_COMMON, "vocab_size": len(_tokenizer()), **ROWS[family][number], **changes}
    return AutoConfig.for_model(family, **{key: value for key, value in settings.items() if value is not _ABSENT})


@functools.cache
def _tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=byte_level_tokenizer(), eos_token="<|endoftext|>")


def save_family(path: Path, family: str, number: int = 0, **changes: Any) -> Path:
    """Saves a model of random weights and its tokenizer in a folder. Norms and biases are random too."""
    return _save(path, tiny_config(family, number, **changes))


def save_unlisted(path: Path, family: str, **settings: Any) -> Path:
    """Saves a model of a family that has no row, as `save_family` does."""
    return _save(path, AutoConfig.for_model(family, **{**_COMMON, "vocab_size": len(_tokenizer()), **settings}))


def _save(path: Path, config: Any) -> Path:
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(path)
    _tokenizer().save_pretrained(path)
    return path
