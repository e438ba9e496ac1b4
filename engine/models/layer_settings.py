"""Reads settings that transformers keeps for each layer by itself, as for Gemma 4's two widths of heads."""

from __future__ import annotations

from typing import Any


def values_of_layers(config: Any, name: str) -> list[Any]:
    """Lists a setting's value in each layer; None where it is unset or unknown.

    Args:
        config: transformers configuration, whose `per_layer_config` differs from it where layers do.
        name: Of the setting.
    """
    count = config.num_hidden_layers
    if not getattr(config, "is_heterogeneous", False):
        return [getattr(config, name, None)] * count
    return [getattr(config.per_layer_config[layer], name, None) for layer in range(count)]


def largest_of_layers(config: Any, name: str) -> int | None:
    """Returns the largest value of a setting in any layer; None where no layer sets it to more than zero."""
    found = [value for value in values_of_layers(config, name) if value]
    return max(found) if found else None
