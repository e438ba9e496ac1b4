"""What happens to a gradient between the backward pass and the optimiser: changes before, clipping, changes after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch.nn import Parameter


class GradientTransform(Protocol):
    """Changes `.grad` of parameters in place."""

    def __call__(self, parameters: Sequence[Parameter], step: int) -> None:
        """Called once an update; `step` updates were made before."""


class Clipping(Protocol):
    """Bounds `.grad` of parameters in place."""

    def __call__(self, parameters: Sequence[Parameter]) -> float:
        """Returns the norm of the whole gradient as it came."""


@dataclass(frozen=True, kw_only=True)
class GradientPipeline:
    """In order: `before`, `clip`, `after`."""

    before: tuple[GradientTransform, ...] = ()
    clip: Clipping
    after: tuple[GradientTransform, ...] = ()
    "What clipping must not undo."

    def apply(self, parameters: Sequence[Parameter], step: int) -> float:
        """Changes the gradients for the update after `step` updates, and returns their norm before clipping."""
        for transform in self.before:
            transform(parameters, step)
        norm = self.clip(parameters)
        for transform in self.after:
            transform(parameters, step)
        return norm
