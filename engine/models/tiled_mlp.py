"""The MLP of a whole window over tiles of tokens (ALST, arXiv 2506.13996): nothing in it mixes tokens."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from engine import errors
from engine.models.layers import decoder_layers

TILE = 2048
"""Tokens that pass through an MLP at once: enough to fill a GPU."""


def tile_mlps(model: Any, tile: int = TILE) -> None:
    """Makes every decoder layer run its MLP over `tile` tokens at a time, and again for each in the backward pass.

    Of a window, only the MLP's input and output are ever as long; its inner activations are as long as a tile.

    Raises:
        EliteError: MODEL_FAMILY_UNSUPPORTED where layers have no plain MLP (mixtures of experts).
    """
    for layer in decoder_layers(model):
        mlp = getattr(layer, "mlp", None)
        if mlp is None or hasattr(mlp, "experts"):
            raise errors.MODEL_FAMILY_UNSUPPORTED(
                family=model.config.model_type,
                feature="the tiled MLP",
                problem="its layers have no plain MLP",
                supported="models without experts",
            )
        mlp.forward = functools.partial(_tiled, mlp.forward, tile)


def _tiled(forward: Callable[[Tensor], Tensor], tile: int, hidden: Tensor) -> Tensor:
    """`forward` of hidden (batch, n, d), tile by tile."""
    if hidden.shape[1] <= tile:
        return forward(hidden)
    parts = hidden.split(tile, dim=1)
    if not torch.is_grad_enabled():
        return torch.cat([forward(part) for part in parts], dim=1)
    # The second time draws the first one's random numbers, whichever module draws them.
    return torch.cat([checkpoint(forward, part, use_reentrant=False, preserve_rng_state=True) for part in parts], dim=1)
