"""Reads RoPE scaling from a configuration. Tells whether rotary tables depend on the input's length, without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

ROPE_KEYS = ("rope_parameters", "rope_scaling", "max_position_embeddings", "original_max_position_embeddings")
"""Configuration keys that these functions read."""


def fixed_rope_context(config: Mapping[str, Any]) -> int | None:
    """Returns the longest input for which the rotary tables are fixed, in tokens; None if they always are.

    Args:
        config: config.json with the family's defaults, or the same keys of a transformers configuration.
    """
    return min(rope_changes(config), default=None)


def rope_changes(config: Mapping[str, Any]) -> list[int]:
    """Lists the lengths of an input, in tokens, beyond which rotary tables are others.

    This follows transformers (modeling_rope_utils). `dynamic` rescales for inputs beyond max_position_embeddings,
    regardless of other keys. `longrope` changes its factors beyond original_max_position_embeddings, for which a key of
    the configuration takes precedence over one of its rotary settings.

    Args:
        config: As in `fixed_rope_context`.
    """
    lengths = []
    trained = "max_position_embeddings"
    original = "original_max_position_embeddings"
    for settings in _settings(config):
        kind = _kind(settings)
        if "dynamic" in kind:
            lengths.append(_first_length(config.get(trained)))
        elif kind == "longrope":
            lengths.append(_first_length(config.get(original), settings.get(original), config.get(trained)))
    return lengths


def rope_type(config: Mapping[str, Any]) -> str:
    """Returns the RoPE scaling of the full-attention layers, such as default, linear, dynamic, yarn, longrope, llama3.

    Args:
        config: As in `fixed_rope_context`.
    """
    rope = _rope(config)
    nested = rope.get("full_attention")
    return _kind(nested if isinstance(nested, Mapping) else rope)


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    found = config.get("rope_parameters") or config.get("rope_scaling")
    return found if isinstance(found, Mapping) else {}


def _settings(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yields the configuration's rotary settings, one or one per layer type."""
    rope = _rope(config)
    yield rope
    yield from (value for value in rope.values() if isinstance(value, Mapping))


def _kind(settings: Mapping[str, Any]) -> str:
    # The first Phi-3 files called LongRoPE (arXiv 2402.13753) "su" or "yarn".
    if "long_factor" in settings:
        return "longrope"
    return str(settings.get("rope_type") or settings.get("type") or "default")


def _first_length(*candidates: Any) -> int:
    """Returns the first candidate that is a length; 0 if none is, as no context is then known to be safe."""
    return next((value for value in candidates if isinstance(value, int) and value > 0), 0)
