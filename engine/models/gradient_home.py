"""Host buffers for the gradients of trained weights.

The operating system maps new memory page by page as it is written, which limits a gradient's copy to the host to
1.5 GB/s. So each weight has a pinned buffer that is kept from step to step, and gradients that are added to it pass
through a small staging buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from engine.hardware.pinned_memory import pinned_empty

STAGING_VALUES = 2**24
"Values of the staging buffer, 64 MiB in fp32."


class GradientHome:
    """Keeps one host buffer for the gradient of each weight.

    Args:
        empty: Allocates host memory of (shape, dtype).
    """

    def __init__(self, empty: Callable[[Sequence[int], torch.dtype], Tensor] = pinned_empty) -> None:
        self._empty = empty
        self._kept: dict[nn.Parameter, Tensor] = {}
        self._staging: Tensor | None = None

    def keep(self, parameter: nn.Parameter, gradient: Tensor) -> Tensor:
        """Copies the gradient into the weight's buffer and returns it, in the gradient's shape and dtype.

        The buffer holds the copy until the next call for that weight.

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
