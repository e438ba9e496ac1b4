"""Reads a ModelSpec from a config.json, by its family's row in the registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.models.families import FAMILIES, Config, Family, setting_refusals
from engine.models.rope import fixed_rope_context, rope_type
from engine.models.spec import ModelSpec

_REQUIRED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")


_MOST = 2**31
"""Every number of a model's shape is below it: tensors are indexed by it, and the planner multiplies several."""


class ConfigError(ValueError):
    """A config.json that does not describe a decoder. The message says what is missing or wrong."""


def spec_from_config(
    config: Config, *, name: str, hub_id: str | None = None, path: Path | None = None, licence: str = "unknown"
) -> ModelSpec:
    """Builds the ModelSpec that a config.json describes.

    Raises:
        ConfigError: a key is missing or is not a positive whole number, or the family is not in FAMILIES.
    """
    family = FAMILIES.get(config.get("model_type", ""))
    if family is None:
        raise ConfigError(f"its model_type is {config.get('model_type')!r}")
    config = {**family.defaults, **config}
    for key in _REQUIRED:
        if not (isinstance(config.get(key), int) and config[key] > 0):
            raise ConfigError(f"config.json has no valid {key}")
    try:
        shape = _shape(family, config)
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ConfigError(f"config.json has a value of the wrong type ({error})") from error
    return ModelSpec(name=name, family=config["model_type"], licence=licence, hub_id=hub_id, path=path, **_valid(shape))


def _shape(family: Family, config: Config) -> dict[str, Any]:
    """Returns the fields of a ModelSpec that describe its architecture."""
    heads = config["num_attention_heads"]
    # A key that config.json leaves out or sets to null has transformers' default.
    kv_heads = config.get("num_key_value_heads", family.kv_heads)
    defaults = {"max_position_embeddings": family.max_context, **family.rope_defaults}
    positions = {**defaults, **config}
    shape: dict[str, Any] = {
        "hidden_size": config["hidden_size"],
        "layers": config["num_hidden_layers"],
        "heads": heads,
        "kv_heads": heads if kv_heads is None else kv_heads,
        "head_dim": config.get("head_dim") or family.head_dim or config["hidden_size"] // heads,
        "intermediate_size": config["intermediate_size"],
        "vocab_size": config["vocab_size"],
        "tied_embeddings": bool(config.get("tie_word_embeddings", family.tied_embeddings)),
        "max_context": positions["max_position_embeddings"],
        "fixed_rope_context": fixed_rope_context(positions),
        "rope_type": rope_type(positions),
        "not_streamed": setting_refusals(config).get("streamed"),
        "softcap": config.get("attn_logit_softcapping"),
        "whole_head": bool(config.get("final_logit_softcapping")) or config.get("logits_scaling", 1.0) != 1.0,
        "caps_logits": bool(config.get("final_logit_softcapping")) or config.get("logits_scaling", 1.0) == 1.0,
        **family.shape,
        **family.from_config(config),
    }
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and len(kinds) == config["num_hidden_layers"]:
        shape["full_attention_layers"] = kinds.count("full_attention")
    if shape.get("sliding_window") is None or "full_attention_layers" not in shape:
        shape["full_attention_layers"] = config["num_hidden_layers"]
    return shape


def _valid(shape: dict[str, Any]) -> dict[str, Any]:
    counts = ["kv_heads", "head_dim", "max_context"]
    counts += ["sliding_window"] if shape.get("sliding_window") is not None else []
    counts += ["experts", "experts_per_token", "expert_size"] if shape.get("sparse_layers") else []
    for key in counts:
        if not (isinstance(shape[key], int) and shape[key] > 0):
            raise ConfigError(f"config.json gives {key} as {shape[key]!r}")
    for key, value in shape.items():
        if isinstance(value, (int, float)) and not abs(value) < _MOST:
            raise ConfigError(f"config.json gives {key} as {value!r:.40}")
    if shape["heads"] % shape["kv_heads"]:
        raise ConfigError(f"{shape['heads']} query heads do not share {shape['kv_heads']} key heads evenly")
    if shape.get("sparse_layers") and shape["experts_per_token"] > shape["experts"]:
        raise ConfigError(f"a token cannot choose {shape['experts_per_token']} of {shape['experts']} experts")
    return shape
