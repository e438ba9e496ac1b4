"""Gradient pipeline between the backward pass and the optimiser, of transforms before and after clipping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.nn import Parameter


class GradientTransform(Protocol):
    """Changes `.grad` of parameters in place."""

    def __call__(self, parameters: Sequence[Parameter], step: int) -> None:
        """Called once an update; `step` is the number of updates before it."""


class Clipping(Protocol):
    """Bounds `.grad` of parameters in place."""

    def __call__(self, parameters: Sequence[Parameter]) -> float | Tensor:
        """Clips, and returns the norm of the whole gradient before clipping, if possible without waiting for it."""


@dataclass(frozen=True, kw_only=True)
class GradientPipeline:
    """Applies `before`, `clip` and `after`, in this order."""

    before: tuple[GradientTransform, ...] = ()
    clip: Clipping
    after: tuple[GradientTransform, ...] = ()
    "Transforms that clipping must not undo."

    def apply(self, parameters: Sequence[Parameter], step: int) -> float | Tensor:
        """Transforms gradients for the update after `step` updates; returns their norm before clipping, shape ()."""
        for transform in self.before:
            transform(parameters, step)
        norm = self.clip(parameters)
        for transform in self.after:
            transform(parameters, step)
        return norm
