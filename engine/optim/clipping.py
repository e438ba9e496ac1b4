"""Gradient clipping, by the global norm or adaptively by unit (AGC, arXiv 2102.06171)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils import clip_grad_norm_

SMALLEST_WEIGHT = 1e-3
"""Lower bound of a unit's weight norm, so that weights that start at zero can leave it."""


@dataclass(frozen=True, kw_only=True)
class NormClipping:
    """Scales the whole gradient to a norm of at most `max_norm`."""

    max_norm: float

    def __call__(self, parameters: Sequence[Parameter]) -> Tensor:
        """See Clipping."""
        return clip_grad_norm_(parameters, self.max_norm)


@dataclass(frozen=True, kw_only=True)
class AdaptiveClipping:
    """Scales each row of a matrix's gradient to at most `ratio` times the norm of the row's weights."""

    ratio: float

    @torch.no_grad()
    def __call__(self, parameters: Sequence[Parameter]) -> Tensor:
        """See Clipping."""
        squares = torch.zeros((), dtype=torch.float64)
        for parameter in parameters:
            gradient = parameter.grad
            if gradient is None:
                continue
            rows = tuple(range(1, gradient.ndim)) or (0,)
            norms = gradient.norm(dim=rows, keepdim=True)
            squares = squares + norms.square().sum(dtype=torch.float64)
            limits = self.ratio * parameter.norm(dim=rows, keepdim=True).clamp_min(SMALLEST_WEIGHT)
            gradient.mul_((limits / norms.clamp_min(1e-12)).clamp_max(1.0))
        return squares.sqrt()
