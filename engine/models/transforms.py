"""Applies training techniques to a model and its adapter. Each technique is one function of its own module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.models.adapter import without_adapter
from engine.models.compiled import compile_layers
from engine.models.neftune import add_embedding_noise
from engine.models.shifted_attention import shift_attention
from engine.models.tiled_mlp import tile_mlps

if TYPE_CHECKING:
    from engine.config import TrainingSection


def transform(model: Any, training: TrainingSection, context: int) -> list[str]:
    """Applies the configured techniques in an order that works, and returns their names.

    Combinations that exclude each other were refused before (engine.plan.optimizations.refuse_conflicts).

    Args:
        model: A causal language model, alone or in its adapter.
        training: The settings.
        context: Tokens per window.
    """
    base: Any = without_adapter(model)
    applied = []
    if training.neftune_alpha:
        add_embedding_noise(base, training.neftune_alpha, context)
        applied.append("neftune")
    if training.shifted_attention:
        shift_attention(base, context)
        applied.append("longlora_s2")
    if training.tiled_mlp:
        tile_mlps(base)
        applied.append("tiled_mlp")
    if training.compile:
        compile_layers(base)
        applied.append("torch_compile")
    return applied
