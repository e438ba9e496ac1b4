"""Keyword arguments of the decoder layers for a tile's positions (rotary tables), cached where they are small."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from engine.streaming.decoder import Decoder

CACHE_BYTES = 128 * 2**20
"""Most bytes of the tables of all tiles that stay on the device; larger tables are recomputed for each layer."""


class TileArguments:
    """Keyword arguments of every layer for each tile.

    Args:
        decoder: Decoder of the layers.
        context: Tokens of the sequence.
        document_starts: First positions of packed documents, ascending from 0.
        tile: Tokens of a tile.
        device: Compute device.
        positions: Positions of the tokens in their documents, (context,), on the device; None to count them from
            `document_starts`.
    """

    def __init__(
        self,
        decoder: Decoder,
        context: int,
        document_starts: Sequence[int],
        tile: int,
        device: torch.device,
        positions: Tensor | None = None,
    ) -> None:
        self._decoder, self._context, self._tile, self._device = decoder, context, tile, device
        self._positions = positions
        self._starts = torch.tensor(list(document_starts), dtype=torch.long, device=device)
        self._kept: dict[int, list[dict[str, Any]]] = {}
        self._keeps: bool | None = None

    def of(self, tile: int, hidden: Tensor) -> list[dict[str, Any]]:
        """Returns one dictionary a layer. `hidden` is the tile's input, (1, tile, hidden)."""
        if tile in self._kept:
            return self._kept[tile]
        arguments = self._decoder.layer_arguments(hidden.detach(), self.positions(tile, hidden.shape[1]))
        if self._keeps is None:
            a_token = _tensor_bytes(arguments) / hidden.shape[1]
            self._keeps = a_token * self._context <= CACHE_BYTES
        if self._keeps:
            self._kept[tile] = arguments
        return arguments

    def positions(self, tile: int, length: int) -> Tensor:
        """Computes each token's position in its document, (1, length) int64, on the device, as a copy would block."""
        start = tile * self._tile
        if self._positions is not None:
            return self._positions[start : start + length].unsqueeze(0)
        order = torch.arange(start, start + length, device=self._device)
        return (order - self._starts[torch.bucketize(order, self._starts, right=True) - 1]).unsqueeze(0)


def _tensor_bytes(arguments: list[dict[str, Any]]) -> int:
    """Counts the bytes of the distinct tensors in the arguments."""
    found: dict[int, int] = {}

    def visit(value: Any) -> None:
        if isinstance(value, Tensor):
            found[value.data_ptr()] = value.numel() * value.element_size()
        elif isinstance(value, (list, tuple)):
            for item in value:
                visit(item)

    for layer in arguments:
        for value in layer.values():
            visit(value)
    return sum(found.values())
