"""Lets a model whose decoder layers are on the host, or in its files, run any forward: each layer fetches itself.

A layer's weights come to the device when its forward begins, and the next layer's while it computes (ZeRO-Inference,
arXiv 2207.00032, section 6). The layers form a ring, because the next token begins at the first layer again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from engine.models.layers import decoder_layers
from engine.streaming import copies
from engine.streaming.weights import StreamedWeights, move_others


@contextlib.contextmanager
def fetched_layers(model: Any, device: torch.device, *, mapped: bool = False) -> Iterator[None]:
    """Makes the decoder layers of a model fetch themselves within the block, for forwards without gradients.

    Args:
        model: A causal language model, alone or with an adapter, its decoder layers on the host.
        device: Computes; everything outside of the layers moves there for good.
        mapped: Whether the layers stay mapped to files instead of pinned memory.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    layers = decoder_layers(causal)
    weights = StreamedWeights(layers, device, copies.copy_streams(device), mapped=mapped)
    move_others(model, layers, device)

    def enter(number: int, _: nn.Module, __: Any) -> None:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("a layer that is copied from the host cannot be part of a CUDA graph")
        weights.enter(number)
        weights.prefetch((number + 1) % len(layers))

    hooks = [layer.register_forward_pre_hook(partial(enter, number)) for number, layer in enumerate(layers)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        weights.close()
