"""What the model tells each decoder layer about a tile's positions (rotary tables), kept where that is cheap."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine.streaming.decoder import Decoder

CACHE_BYTES = 128 * 2**20
"""Tables of all tiles stay on the device if they fit in this; otherwise they are made again for each layer."""


class TileArguments:
    """Keyword arguments of every layer for each tile.

    Args:
        decoder: Whose layers are called.
        positions: Position of each token, (context,), on the CPU.
        tile: Tokens a tile.
        device: Compute device.
    """

    def __init__(self, decoder: Decoder, positions: Tensor, tile: int, device: torch.device) -> None:
        self._decoder, self._positions, self._tile, self._device = decoder, positions, tile, device
        self._kept: dict[int, list[dict[str, Any]]] = {}
        self._keeps: bool | None = None

    def of(self, tile: int, hidden: Tensor) -> list[dict[str, Any]]:
        """One dictionary a layer. `hidden` is the tile's input, (1, tile, hidden)."""
        if tile in self._kept:
            return self._kept[tile]
        start = tile * self._tile
        positions = self._positions[start : start + hidden.shape[1]].to(self._device).unsqueeze(0)
        arguments = self._decoder.layer_arguments(hidden.detach(), positions)
        if self._keeps is None:
            a_token = _tensor_bytes(arguments) / hidden.shape[1]
            self._keeps = a_token * len(self._positions) <= CACHE_BYTES
        if self._keeps:
            self._kept[tile] = arguments
        return arguments


def _tensor_bytes(arguments: list[dict[str, Any]]) -> int:
    """Bytes of the distinct tensors in the arguments."""
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
