"""Regional torch.compile. Compiles each decoder layer by itself, so one compiled region serves all layers."""

from __future__ import annotations

from typing import Any

from engine.models.layers import decoder_layers


def compile_layers(model: Any, backend: str = "inductor") -> None:
    """Compiles every decoder layer in place. The first steps are slow, because each new length compiles again.

    Args:
        model: A causal language model, with or without an adapter.
        backend: torch.compile's backend; "inductor" makes fused kernels.
    """
    for layer in decoder_layers(model):
        layer.compile(backend=backend)
