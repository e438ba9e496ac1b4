"""Cross-entropy of a tile without a tokens × vocabulary tensor (arXiv 2410.10989, 2411.09009): piece by piece."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from torch import Tensor, nn

IGNORED = -100
"""Label of a token that is not to be predicted."""


def _torch_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(wide, labels, ignore_index=IGNORED, reduction="sum")


def _liger_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    from liger_kernel.ops.cross_entropy import LigerCrossEntropyFunction

    result = LigerCrossEntropyFunction.apply(logits, labels, None, IGNORED, 0.0, 0.0, "sum", None, False)
    return cast("Tensor", result[0])


@cache
def _cross_entropy(device_type: str) -> Callable[[Tensor, Tensor], Tensor]:
    """liger-kernel's on a GPU (its gradient overwrites the logits: one tensor instead of four), else torch's."""
    liger = device_type == "cuda" and importlib.util.find_spec("liger_kernel") is not None
    return _liger_cross_entropy if liger else _torch_cross_entropy


def loss_and_gradient(
    hidden: Tensor, labels: Tensor, head: nn.Module, *, piece: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy of a tile, and scale × its gradient with respect to `hidden`.

    A head that requires gradients accumulates scale × its own.

    Args:
        hidden: Input of the language-model head, (tokens, hidden), no graph attached.
        labels: Token to predict at each position, (tokens,); IGNORED where none.
        head: The language-model head, a linear layer.
        piece: Tokens whose logits exist at once.
        scale: Multiplies the gradient, not the loss.

    Returns:
        The sum over the tile, a scalar of fp32 or wider; the gradient, like `hidden`.
    """
    cross_entropy = _cross_entropy(hidden.device.type)
    gradient = torch.empty_like(hidden)
    total = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
    for start in range(0, hidden.shape[0], piece):
        part = slice(start, start + piece)
        leaf = hidden[part].detach().requires_grad_()
        loss = cross_entropy(head(leaf), labels[part])
        (loss * scale).backward()
        assert leaf.grad is not None
        gradient[part] = leaf.grad
        total += loss.detach()
    return total, gradient
