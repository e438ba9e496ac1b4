"""Annealed gradient noise (arXiv 1511.06807)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import Parameter

from engine.randomness import derive_seed

DECAY = 0.55
"""The paper's exponent; the variance after t updates is that of the first update / (1 + t)^0.55."""


@dataclass(frozen=True, kw_only=True)
class GradientNoise:
    """Adds normal noise of variance deviation² / (1 + t)^0.55.

    The noise is keyed by (seed, step, parameter), so that a resumed run draws the same.
    """

    deviation: float
    seed: int

    @torch.no_grad()
    def __call__(self, parameters: Sequence[Parameter], step: int) -> None:
        """See GradientTransform."""
        deviation = self.deviation * (1 + step) ** (-DECAY / 2)
        for index, parameter in enumerate(parameters):
            gradient = parameter.grad
            if gradient is None:
                continue
            generator = torch.Generator(gradient.device)
            generator.manual_seed(derive_seed(self.seed, step, "gradient noise", index))
            gradient.add_(torch.empty_like(gradient).normal_(std=deviation, generator=generator))
