"""The states of a model's recurrent layers, seen where a mixer runs without numbers (the meta device)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from engine.models.layer_shapes import RecurrentShape
from engine.models.layers import has_attention
from engine.models.recurrent_kernels import serve
from engine.models.recurrent_mixers import recurrent_mixers
from engine.streaming.mixer_cache import MixerCache

_TOKENS = 64


def observed_recurrence(layers: Sequence[nn.Module], hidden_size: int) -> RecurrentShape | None:
    """Returns the shapes of the recurrent layers, those of the largest; None where there are none.

    Args:
        layers: Decoder layers on the meta device.
        hidden_size: Width of their inputs.
    """
    mixers = recurrent_mixers(layers)
    serve(mixer for of_layer in mixers for mixer in of_layer)
    found: list[tuple[int, int, int]] = []
    for mixer in {mixer for of_layer in mixers for mixer in of_layer}:
        cache = MixerCache()
        dtype = next(mixer.module.parameters()).dtype
        x = torch.empty((1, _TOKENS, hidden_size), device="meta", dtype=dtype)
        with torch.no_grad(), torch.device("meta"):
            mixer.module(x, **{mixer.cache: cache})
        state = sum(value.numel() for (kind, _), value in cache.after.items() if kind == "recurrent")
        conv = sum(value.numel() for (kind, _), value in cache.after.items() if kind == "conv")
        channels = sum(value.shape[1] for (kind, _), value in cache.after.items() if kind == "conv")
        found.append((state, conv, channels))
    if not found:
        return None
    state, conv, channels = max(found)
    recurrent = [index for index, of_layer in enumerate(mixers) if of_layer]
    alone = [
        index
        for index, layer in enumerate(layers)
        if not has_attention(layer, [mixer.module for mixer in mixers[index]])
    ]
    return RecurrentShape(
        layers=len(recurrent),
        without_attention=len(alone),
        state_values=state,
        conv_values=conv,
        channels=channels,
    )
