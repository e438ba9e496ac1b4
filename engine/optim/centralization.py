"""Gradient centralisation (arXiv 2004.01461), which subtracts the mean of each row of a matrix's gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import Parameter


@torch.no_grad()
def centralize(parameters: Sequence[Parameter], step: int) -> None:  # noqa: ARG001 - a GradientTransform
    """Subtracts the mean over all but the first dimension; vectors stay as they are."""
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is not None and gradient.ndim > 1:
            gradient.sub_(gradient.mean(dim=tuple(range(1, gradient.ndim)), keepdim=True))
