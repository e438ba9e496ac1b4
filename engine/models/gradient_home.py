"""Where the gradients of trained weights arrive on the host.

Fresh memory comes page by page as it is written, at 1.5 GB/s, which is what a gradient's way home used to take. So each
weight has memory of its own that is kept from step to step, pinned, and what is added to it comes through a small
piece of staging memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from engine.hardware.pinned_memory import pinned_empty

STAGING_VALUES = 2**24
"Of a gradient that is added to another one, at a time: 64 MiB in fp32."


class GradientHome:
    """Memory on the host for one gradient of each weight.

    Args:
        empty: Makes host memory of (shape, dtype).
    """

    def __init__(self, empty: Callable[[Sequence[int], torch.dtype], Tensor] = pinned_empty) -> None:
        self._empty = empty
        self._kept: dict[nn.Parameter, Tensor] = {}
        self._staging: Tensor | None = None

    def keep(self, parameter: nn.Parameter, gradient: Tensor) -> Tensor:
        """A copy of the gradient in the weight's own memory, which holds it until the next call for that weight.

        Raises:
            MemoryError: the host has no room.
        """
        if parameter not in self._kept:
            self._kept[parameter] = self._empty(gradient.shape, gradient.dtype)
        return self._kept[parameter].copy_(gradient)

    def add(self, total: Tensor, gradient: Tensor) -> None:
        """Adds a gradient to a contiguous one of its shape and dtype on the host.

        Raises:
            MemoryError: the host has no room.
        """
        if self._staging is None or self._staging.dtype != gradient.dtype:
            self._staging = self._empty((STAGING_VALUES,), gradient.dtype)
        pieces = (x.reshape(-1).split(STAGING_VALUES) for x in (total, gradient))
        for part, arriving in zip(*pieces, strict=True):
            part.add_(self._staging[: arriving.numel()].copy_(arriving))
