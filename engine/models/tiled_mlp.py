"""Tiled MLP of a whole window (ALST, arXiv 2506.13996), which works because an MLP does not mix tokens."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from engine.errors.model import MODEL_FAMILY_UNSUPPORTED
from engine.models.layers import decoder_layers

TILE = 2048
"""Tokens that pass through an MLP at once, enough to fill a GPU."""


def tile_mlps(model: Any, tile: int = TILE) -> None:
    """Makes every decoder layer run its MLP over `tile` tokens at a time and recompute each tile in the backward pass.

    Only the MLP's input and output have the window's length; its inner activations have the tile's.

    Raises:
        EliteError: MODEL_FAMILY_UNSUPPORTED if layers have no plain MLP (mixtures of experts).
    """
    for layer in decoder_layers(model):
        mlp = getattr(layer, "mlp", None)
        if mlp is None or hasattr(mlp, "experts"):
            raise MODEL_FAMILY_UNSUPPORTED(
                family=model.config.model_type,
                feature="the tiled MLP",
                problem="its layers have no plain MLP",
                supported="models without experts",
            )
        mlp.forward = functools.partial(_tiled, mlp.forward, tile)


def _tiled(forward: Callable[[Tensor], Tensor], tile: int, hidden: Tensor) -> Tensor:
    """Applies `forward` to hidden (batch, n, d), tile by tile."""
    if hidden.shape[1] <= tile:
        return forward(hidden)
    parts = hidden.split(tile, dim=1)
    if not torch.is_grad_enabled():
        return torch.cat([forward(part) for part in parts], dim=1)
    # The recomputation must draw the same random numbers as the first forward.
    return torch.cat([checkpoint(forward, part, use_reentrant=False, preserve_rng_state=True) for part in parts], dim=1)
