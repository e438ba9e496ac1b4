"""Keeps rotary tables in full fp32, even where TF32 is allowed.

transformers before 5.22 computes the angles by a matrix product (inverse frequencies @ positions). With TF32, which
`tune_memory` allows, the factors of a product are rounded to 10 bits, and positions above 2,048 coincide (transformers
issue 48428). The product runs over one element, so in full fp32 it equals the elementwise product of newer versions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

_MARK = "_elite_full_precision"


def keep_tables_exact(model: nn.Module) -> None:
    """Makes every rotary embedding of a model compute in fp32, without TF32 and autocast. Idempotent.

    Args:
        model: A transformers model, with or without an adapter; the forward of its rotary modules is replaced in place.
    """
    for module in model.modules():
        if type(module).__name__.endswith("RotaryEmbedding") and _MARK not in module.__dict__:
            module.__dict__[_MARK] = True
            module.forward = _in_full_precision(module.forward)


def _in_full_precision(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def computed(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            # The meta device, on which memory is counted, has no autocast.
            kind = x.device.type if torch.amp.is_autocast_available(x.device.type) else "cpu"
            with torch.autocast(kind, enabled=False):
                return forward(x, *args, **kwargs)
        finally:
            torch.set_float32_matmul_precision(before)

    return computed
