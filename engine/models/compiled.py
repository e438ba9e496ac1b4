"""torch.compile, a decoder layer at a time: one compiled region serves all layers."""

from __future__ import annotations

from typing import Any

from engine.models.layers import decoder_layers


def compile_layers(model: Any, backend: str = "inductor") -> None:
    """Compiles the call of every decoder layer, in place. The first steps are slow: each new length compiles anew.

    Args:
        model: A causal language model, with or without an adapter.
        backend: torch.compile's; "inductor" makes fused kernels.
    """
    for layer in decoder_layers(model):
        layer.compile(backend=backend)
