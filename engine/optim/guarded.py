"""Launches an update before the host knows whether it may be made, so that the GPU does not wait for the host.

Reading a step's loss and norm first leaves a fast GPU idle for as long as the host takes to launch the update: 5 to 9
of 163 ms with 8,192 tokens on an H200. torch's fused AdamW reads a flag of loss scaling on the device, and leaves
weights, moments and step counts alone where it is set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer


def can_guard(optimizer: Optimizer) -> bool:
    """Whether an optimiser leaves everything alone where `found_inf` is 1."""
    return isinstance(optimizer, AdamW) and bool(optimizer.defaults.get("fused"))


def launch_update(optimizer: Any, figures: Sequence[Tensor]) -> None:
    """Takes a step of the optimiser that changes nothing where a figure is not finite, without waiting for them.

    Args:
        optimizer: One that `can_guard`, or accelerate's wrapper of one.
        figures: Scalars on the device, such as the loss and the gradient's norm.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    device = figures[0].device
    finite = torch.stack([figure.isfinite().to(device, non_blocking=True) for figure in figures]).all()
    inner.found_inf = 1.0 - finite.float()
    try:
        optimizer.step()
    finally:
        del inner.found_inf
