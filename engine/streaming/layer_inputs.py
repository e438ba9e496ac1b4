"""Inputs that single layers take beside the hidden states (per-layer embeddings of Gemma 3n, Gemma 4 E2B and E4B).

All are computed with the embedding, and offloaded to the hidden states' home until their layer runs. The gradient of
one takes its place there; the embedding's backward pass then takes those of all layers together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from engine.streaming.decoder import LAYER_INPUT
from engine.streaming.mixer import Pass
from engine.streaming.tiles import TileArray, TileReader


class LayerInputs:
    """Stores each layer's own input of every tile; nothing for a model without such inputs.

    Args:
        new_array: Makes an array of (width, dtype) in the home of the hidden states.
        new_reader: Makes a reader of (width, dtype).
    """

    def __init__(
        self,
        new_array: Callable[[int, torch.dtype], TileArray],
        new_reader: Callable[[int, torch.dtype], TileReader],
    ) -> None:
        self._new_array, self._new_reader = new_array, new_reader
        self._arrays: list[TileArray] = []
        self._reader: TileReader | None = None
        self._leaves: dict[tuple[int, int], Tensor] = {}
        self.trains = False
        "Whether their gradients are wanted."

    def begin(self, rows: int) -> None:
        """Prepares for a sequence of `rows` tokens."""
        self._leaves.clear()
        for array in self._arrays:
            array.rows = rows
        if self._reader is not None:
            self._reader.reset()

    def write(self, tile: int, parts: Sequence[Sequence[Tensor]]) -> None:
        """Stores the inputs of all layers for a tile: of each part of its tokens one for each layer, (1, n, width)."""
        if parts[0] and not self._arrays:
            like = parts[0][0]
            self._arrays = [self._new_array(like.shape[2], like.dtype) for _ in parts[0]]
            self._reader = self._new_reader(like.shape[2], like.dtype)
        for layer, array in enumerate(self._arrays):
            array.write(tile, torch.cat([part[layer][0] for part in parts]))

    def prefetch(self, layer: int, tile: int) -> None:
        """Starts to fetch the tile for `arguments`."""
        if self._reader is not None:
            self._reader.prefetch(self._arrays[layer], tile)

    def arguments(self, layer: int, tile: int, purpose: Pass) -> dict[str, Tensor]:
        """Returns a layer's input, (1, tile, width), as its keyword argument; none for a model without such inputs."""
        if self._reader is None:
            return {}
        value = self._reader.read(self._arrays[layer], tile).unsqueeze(0)
        if purpose is Pass.KEEP:
            value = value.clone()  # its graph outlives the reader's buffer
        if self.trains and purpose in (Pass.KEEP, Pass.GRADIENT):
            value = self._leaves[layer, tile] = value.detach().requires_grad_()
        return {LAYER_INPUT: value}

    def take_gradient(self, layer: int, tile: int) -> None:
        """Stores the gradient of a layer's input after its backward pass, in the place of the input."""
        leaf = self._leaves.pop((layer, tile), None)
        if leaf is not None:
            assert leaf.grad is not None
            self._arrays[layer].write(tile, leaf.grad[0])

    def forget(self, layer: int, tile: int) -> None:
        """Drops a layer's gradient, so that the layer can run again."""
        self._leaves.pop((layer, tile), None)

    def gradients(self, tile: int) -> list[Tensor]:
        """Returns the gradients of all layers' inputs for a tile, each (1, tile, width)."""
        if self._reader is None:
            return []
        # The reader's buffers hold two tiles, and all are needed at once.
        return [self._reader.read(array, tile).unsqueeze(0).clone() for array in self._arrays]

    def close(self) -> None:
        """Releases the arrays."""
        for array in self._arrays:
            array.close()
        self._arrays, self._reader = [], None
        self._leaves.clear()
