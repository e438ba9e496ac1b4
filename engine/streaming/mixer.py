"""Couples the tiles of a sequence in a layer: the state that a tile takes from earlier ones, and its gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from enum import Enum
from typing import Any

import torch
from torch import Tensor


class Pass(Enum):
    """Purpose of a layer's run."""

    FORWARD = "compute outputs; keep the state for later tiles, and what the backward pass needs"
    EVALUATE = "compute outputs; keep the state for the layer's later tiles only"
    REPEAT = "compute outputs again, from what was saved if anything was"
    COLLECT = "compute and keep the state only"
    GRADIENT = "compute outputs with a graph; the states of earlier tiles are there already"
    KEEP = "compute outputs for the first time, with a graph that the backward pass will find; a single tile"


class KvCollected(Exception):  # noqa: N818 - not an error: ends a layer early
    """Raised inside a layer in Pass.COLLECT once its state is kept, to skip the rest of the layer."""


class Mixer(ABC):
    """The mixer state of one layer in one sequence.

    A layer's passes call it around every tile. In the forward passes tiles run from the first to the last, and each
    adds to the state. In the backward pass they run from the last to the first, as `backward_order` says. Each takes
    the gradient of what it added to the state, and adds to the gradients of the states of earlier tiles.
    """

    @abstractmethod
    def running(self, purpose: Pass, tile: int, span: slice) -> AbstractContextManager[Mapping[str, Any]]:
        """Serves the layer's call on a tile, which must be made within the context.

        Args:
            purpose: What the call is for.
            tile: Number of the tile.
            span: Its positions.

        Returns:
            Gives the keyword arguments that the layer gets beside those of the model.

        Raises:
            KvCollected: in COLLECT, from within the layer, if the rest of the layer adds nothing to the state.
        """

    def prefetch(self, purpose: Pass, tile: int) -> None:  # noqa: B027 - a state that is resident needs none
        """Starts to fetch what `running` will read."""

    def restore(self, spans: Sequence[slice]) -> bool:  # noqa: ARG002
        """Restores the state of all tiles before the backward pass, or finds it in place.

        Returns:
            Whether it is; if not, COLLECT over all tiles restores it.
        """
        return True

    def begin_backward(self) -> None:  # noqa: B027 - a state may have no gradient buffer
        """Begins the backward pass with zero gradients."""

    def backward_order(self, tiles: int) -> list[tuple[Pass, int]]:
        """Lists the tiles of the backward pass from the last, each after the tiles to collect for it."""
        return [(Pass.GRADIENT, tile) for tile in reversed(range(tiles))]

    def restore_below(self, tile: int, spans: Sequence[slice]) -> None:  # noqa: B027
        """Fetches the saved states that a tile's backward pass takes and that `restore` did not fetch."""

    def backward(self, tile: int, y: Tensor, gradient: Tensor) -> None:  # noqa: ARG002
        """Backpropagates a tile, and takes the gradient of what it added to the state.

        Args:
            tile: The tile, whose call was the last one in GRADIENT.
            y: Its output, (1, tile, hidden).
            gradient: Gradient of y, in the same shape.
        """
        if y.requires_grad:
            torch.autograd.backward(y, gradient)
