"""Layers that attend to the keys and values of an earlier layer (Gemma 3n, Gemma 4 E2B and E4B)."""

from __future__ import annotations

from typing import Any


def kv_owners(config: Any) -> list[int | None]:
    """Lists, for each decoder layer, the layer whose keys and values it attends to; None where they are its own.

    The last layers of a model, `num_kv_shared_layers` of them, take those of the last layer before them that is of the
    same type.

    Args:
        config: transformers configuration.
    """
    layers: int = config.num_hidden_layers
    own = layers - (getattr(config, "num_kv_shared_layers", None) or 0)
    if own >= layers:
        return [None] * layers
    kinds = list(config.layer_types)
    last = {kind: layer for layer, kind in enumerate(kinds[:own])}
    return [None] * own + [last[kind] for kind in kinds[own:]]
