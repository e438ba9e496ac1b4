"""Reads a Hugging Face config.json into a ModelSpec. Each family's keys and defaults are those of transformers 5."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.models.spec import ModelSpec

Config = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Family:
    """What the models of one transformers `model_type` share."""

    shape: Mapping[str, Any] = field(default_factory=dict)
    "ModelSpec fields that are the same for all its models."
    kv_heads: int | None = None
    "Default of num_key_value_heads; None is as many as there are query heads."
    head_dim: int | None = None
    "Default of head_dim; None is hidden_size / num_attention_heads."
    tied_embeddings: bool = False
    max_context: int = 32768
    from_config: Callable[[Config], dict[str, Any]] = lambda _: {}
    "ModelSpec fields that depend on keys of this family's config.json alone."


def _attention_bias(config: Config) -> dict[str, Any]:
    bias = bool(config.get("attention_bias", False))
    return {"attention_bias": bias, "output_bias": bias}


def _llama(config: Config) -> dict[str, Any]:
    return {**_attention_bias(config), "mlp_bias": bool(config.get("mlp_bias", False))}


def _windowed_after(config: Config) -> dict[str, Any]:
    """Qwen: the window, where it is switched on at all, holds for the layers from max_window_layers on."""
    window = config.get("sliding_window", 4096) if config.get("use_sliding_window", False) else None
    full = min(config.get("max_window_layers", 28), config["num_hidden_layers"])
    return {"sliding_window": window, "full_attention_layers": full}


def _qwen3(config: Config) -> dict[str, Any]:
    return {**_windowed_after(config), **_attention_bias(config)}


def _windowed(default: int | None) -> Callable[[Config], dict[str, Any]]:
    def read(config: Config) -> dict[str, Any]:
        return {"sliding_window": config.get("sliding_window", default), "full_attention_layers": 0}

    return read


def _alternating(pattern: int, window: int) -> Callable[[Config], dict[str, Any]]:
    """Gemma: every `pattern`-th layer attends to everything, the others through the window."""

    def read(config: Config) -> dict[str, Any]:
        every = config.get("sliding_window_pattern") or pattern
        return {
            **_attention_bias(config),
            "sliding_window": config.get("sliding_window", window),
            "full_attention_layers": config["num_hidden_layers"] // every,
        }

    return read


def _starcoder2(config: Config) -> dict[str, Any]:
    bias = bool(config.get("use_bias", True))
    return {**_windowed(None)(config), "attention_bias": bias, "output_bias": bias, "mlp_bias": bias}


_LAYER_NORM = {"norm_bias": True, "gated_mlp": False}
_ALL_BIASES = {"attention_bias": True, "output_bias": True, "mlp_bias": True}

FAMILIES: dict[str, Family] = {
    "llama": Family(max_context=2048, from_config=_llama),
    "mistral": Family(kv_heads=8, max_context=131_072, from_config=_windowed(4096)),
    "qwen2": Family(shape={"attention_bias": True}, kv_heads=32, from_config=_windowed_after),
    "qwen3": Family(shape={"qk_norm": True}, kv_heads=32, head_dim=128, from_config=_qwen3),
    "phi": Family(
        shape={**_LAYER_NORM, **_ALL_BIASES, "head_bias": True, "norms_per_layer": 1},
        max_context=2048,
        from_config=lambda config: {"qk_norm": bool(config.get("qk_layernorm", False))},
    ),
    "phi3": Family(shape={"fused_projections": True}, max_context=4096, from_config=_windowed(None)),
    "gemma2": Family(
        shape={"norms_per_layer": 4},
        kv_heads=4,
        head_dim=256,
        tied_embeddings=True,
        max_context=8192,
        from_config=_alternating(2, 4096),
    ),
    "gemma3_text": Family(
        shape={"norms_per_layer": 4, "qk_norm": True},
        kv_heads=4,
        head_dim=256,
        tied_embeddings=True,
        max_context=131_072,
        from_config=_alternating(6, 4096),
    ),
    "starcoder2": Family(
        shape={**_LAYER_NORM, **_ALL_BIASES},
        kv_heads=2,
        tied_embeddings=True,
        max_context=4096,
        from_config=_starcoder2,
    ),
}
"""The supported families, by transformers' model_type."""

STREAMED = (
    "gemma3_text",
    "llama",
    "mistral",
    "mixtral",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "starcoder2",
)
"""Families whose streamed gradient is tested against whole-sequence backpropagation."""

FUSED = ("llama", "mistral", "qwen2", "qwen3")
"""Families whose gradient with fused kernels is tested on a GPU against the one without."""

POSITION_DEPENDENT_ROPE = ("dynamic", "longrope")
"""Rotary tables that change with the length of the input, which tiles cannot see."""


def _fixed_rope_context(config: Config) -> int | None:
    """Tokens up to which the rotary tables do not depend on the input's length; None where they never do."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") if isinstance(rope, dict) else None
    if kind not in POSITION_DEPENDENT_ROPE:
        return None
    names = "original_max_position_embeddings", "max_position_embeddings"
    found = [source.get(name) for name in names for source in (rope, config)]
    return next((length for length in found if isinstance(length, int) and length > 0), None)


_REQUIRED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")


class ConfigError(ValueError):
    """A config.json that does not describe a decoder. The message says what is missing or wrong."""


def spec_from_config(
    config: Config, *, name: str, hub_id: str | None = None, path: Path | None = None, licence: str = "unknown"
) -> ModelSpec:
    """The ModelSpec that a config.json describes.

    Raises:
        ConfigError: a key is missing or is not a positive whole number, or the family is not in FAMILIES.
    """
    family = FAMILIES.get(config.get("model_type", ""))
    if family is None:
        raise ConfigError(f"its model_type is {config.get('model_type')!r}")
    for key in _REQUIRED:
        if not (isinstance(config.get(key), int) and config[key] > 0):
            raise ConfigError(f"config.json has no valid {key}")
    heads = config["num_attention_heads"]
    # config.json leaves a key out, or sets it to null, where the value is transformers' default.
    kv_heads = config.get("num_key_value_heads", family.kv_heads) or heads
    head_dim = config.get("head_dim") or family.head_dim or config["hidden_size"] // heads
    shape: dict[str, Any] = {
        "hidden_size": config["hidden_size"],
        "layers": config["num_hidden_layers"],
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": config["intermediate_size"],
        "vocab_size": config["vocab_size"],
        "tied_embeddings": config.get("tie_word_embeddings", family.tied_embeddings),
        "max_context": config.get("max_position_embeddings", family.max_context),
        "fixed_rope_context": _fixed_rope_context(config),
        **family.shape,
        **family.from_config(config),
    }
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and len(kinds) == config["num_hidden_layers"]:
        shape["full_attention_layers"] = kinds.count("full_attention")
    if shape.get("sliding_window") is None or "full_attention_layers" not in shape:
        shape["full_attention_layers"] = config["num_hidden_layers"]
    return ModelSpec(name=name, family=config["model_type"], licence=licence, hub_id=hub_id, path=path, **_valid(shape))


def _valid(shape: dict[str, Any]) -> dict[str, Any]:
    for key in ("kv_heads", "head_dim", "max_context"):
        if not (isinstance(shape[key], int) and shape[key] > 0):
            raise ConfigError(f"config.json gives {key} as {shape[key]!r}")
    if shape["heads"] % shape["kv_heads"]:
        raise ConfigError(f"{shape['heads']} query heads do not share {shape['kv_heads']} key heads evenly")
    return shape
