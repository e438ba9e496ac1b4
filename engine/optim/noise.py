"""Annealed gradient noise (arXiv 1511.06807)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import Parameter

DECAY = 0.55
"""The paper's exponent: variance after t updates is that of the first / (1 + t)^0.55."""


@dataclass(frozen=True, kw_only=True)
class GradientNoise:
    """Adds normal noise of variance deviation² / (1 + t)^0.55; a pure function of seed and step, so runs can resume."""

    deviation: float
    seed: int

    @torch.no_grad()
    def __call__(self, parameters: Sequence[Parameter], step: int) -> None:
        """See GradientTransform."""
        deviation = self.deviation * (1 + step) ** (-DECAY / 2)
        generators: dict[torch.device, torch.Generator] = {}
        for parameter in parameters:
            gradient = parameter.grad
            if gradient is None:
                continue
            if gradient.device not in generators:
                made = torch.Generator(gradient.device)
                generators[gradient.device] = made.manual_seed((self.seed << 32) + step)
            noise = torch.empty_like(gradient).normal_(std=deviation, generator=generators[gradient.device])
            gradient.add_(noise)
