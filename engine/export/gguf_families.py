"""Metadata that llama.cpp reads for single families, and where it computes otherwise than the model.

The facts are those of llama.cpp's loaders (src/models) and of its converter (conversion/).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gguf import GGUFWriter

_PATTERN = 6
"""Of Gemma 3's layers there every sixth attends to everything, the others through the window."""
_WITHOUT_POSITIONS = 4
"""Of SmolLM3's layers there every fourth has no rotary positions."""
_LAYERS_OF_27B = 62
"""Gemma 3's largest size, which llama.cpp knows by its layers, scales scores by hidden_size / heads."""
_GELU = "gelu_pytorch_tanh"


def obstacle(config: Any) -> str:
    """Returns what llama.cpp would compute otherwise than a model; "" where it computes the same."""
    of_family = {"gemma": _gemma, "gemma3_text": _gemma3, "smollm3": _smollm3, "seed_oss": _seed_oss}
    found = of_family[config.model_type](config) if config.model_type in of_family else ""
    return found or _window_obstacle(config) or _expert_obstacle(config) or _bias_obstacle(config)


def describe(writer: GGUFWriter, config: Any) -> None:
    """Adds the settings to a file's metadata that other families do not have."""
    if config.model_type == "phi3":
        writer.add_sliding_window(config.sliding_window or 0)
    elif config.model_type == "gemma3_text":
        writer.add_sliding_window(config.sliding_window)
        if config.final_logit_softcapping:
            writer.add_final_logit_softcapping(config.final_logit_softcapping)
    elif config.model_type == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)


def experts_of(config: Any) -> int:
    """Number of experts of a layer; 0 for a model without them."""
    if config.model_type != "qwen3_moe":
        return 0
    return int(getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None) or 0)


def _gemma(config: Any) -> str:
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None) or _GELU
    return "" if activation == _GELU else f"its activation is {_GELU} there, not {activation}"


def _gemma3(config: Any) -> str:
    kinds = [
        "sliding_attention" if (layer + 1) % _PATTERN else "full_attention" for layer in range(len(config.layer_types))
    ]
    if list(config.layer_types) != kinds:
        return f"every {_PATTERN}th of its layers attends to everything there, the others through the window"
    largest = config.num_hidden_layers == _LAYERS_OF_27B
    scalar = config.hidden_size // config.num_attention_heads if largest else config.head_dim
    if config.query_pre_attn_scalar != scalar:
        return f"its scores are divided by the root of {scalar} there, not of {config.query_pre_attn_scalar}"
    if getattr(config, "attn_logit_softcapping", None):
        return "its attention scores are not capped there"
    return _gemma(config)


def _smollm3(config: Any) -> str:
    rotates = [int((layer + 1) % _WITHOUT_POSITIONS != 0) for layer in range(config.num_hidden_layers)]
    if [int(bool(each)) for each in config.no_rope_layers] != rotates:
        return f"every {_WITHOUT_POSITIONS}th of its layers has no rotary positions there"
    return ""


def _seed_oss(config: Any) -> str:
    return "llama.cpp reads no bias of its output projection" if config.attention_out_bias else ""


def _expert_obstacle(config: Any) -> str:
    if config.model_type != "qwen3_moe":
        return ""
    if not experts_of(config) or config.mlp_only_layers or config.decoder_sparse_step != 1:
        return "llama.cpp expects experts in every layer of it"
    return "" if config.norm_topk_prob else "llama.cpp makes the chosen experts' weights add up to 1 (norm_topk_prob)"


_WITHOUT_BIASES = ("gemma", "gemma3_text", "olmo2", "qwen3_moe", "smollm3")
"""Families whose biases of attention llama.cpp does not read."""


def _bias_obstacle(config: Any) -> str:
    if config.model_type == "starcoder2" and not config.use_bias:
        return "llama.cpp expects biases in it"
    if config.model_type in _WITHOUT_BIASES and getattr(config, "attention_bias", False):
        return "llama.cpp reads no biases of its attention"
    if config.model_type in ("seed_oss", "smollm3") and getattr(config, "mlp_bias", False):
        return "llama.cpp reads no biases of its MLP"
    return ""


def _window_obstacle(config: Any) -> str:
    """Refuses a sliding window that is shorter than the context, where llama.cpp ignores windows of the family."""
    window = getattr(config, "sliding_window", None)
    layers = getattr(config, "layer_types", None) or ()
    windowed = config.model_type in ("mistral", "qwen3_moe", "starcoder2") or (
        config.model_type not in ("phi3", "gemma3_text") and "sliding_attention" in layers
    )
    if window and windowed and window < config.max_position_embeddings:
        return f"its sliding window of {window} tokens would be lost"
    return ""
