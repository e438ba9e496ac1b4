"""Triton kernel that replaces logits by the gradient of their cross-entropy, without waiting for the GPU.

liger-kernel's wrapper (arXiv 2410.10989) counts the labels on the host before each launch, and checks them there. Each
chunk of a step's loss then waits three times, and none can be captured in a CUDA graph. The labels were checked when
the tokens were encoded.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 16384
"""Most logits that a program holds at once."""


@triton.jit  # type: ignore[untyped-decorator]
def _gradient_kernel(  # type: ignore[no-untyped-def]
    logits,
    stride,
    labels,
    factors,
    losses,
    width,
    smoothing,
    ignored: tl.constexpr,
    weighted: tl.constexpr,
    block: tl.constexpr,
):
    """Computes a row's loss, and its gradient in place of its logits.

    With p = softmax(x) and smoothing e the loss is lse(x) - (1 - e) x[label] - e mean(x), and its gradient is
    p - (1 - e) [label] - e / width.
    """
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    label = tl.load(labels + row)
    if label == ignored:
        for start in range(0, width, block):
            at = start + tl.arange(0, block)
            tl.store(logits + at, 0.0, mask=at < width)
        tl.store(losses + row, 0.0)
        return
    factor = 1.0
    if weighted:
        factor = tl.load(factors + row).to(tl.float32)
    highest = float("-inf")
    total = 0.0
    plain = 0.0
    for start in range(0, width, block):
        at = start + tl.arange(0, block)
        x = tl.load(logits + at, mask=at < width, other=float("-inf")).to(tl.float32)
        found = tl.maximum(highest, tl.max(x))
        total = total * tl.exp(highest - found) + tl.sum(tl.exp(x - found))
        plain += tl.sum(tl.where(at < width, x, 0.0))
        highest = found
    of_label = tl.load(logits + label).to(tl.float32)
    loss = highest + tl.log(total) - (1.0 - smoothing) * of_label - smoothing * plain / width
    tl.store(losses + row, loss * factor)
    for start in range(0, width, block):
        at = start + tl.arange(0, block)
        x = tl.load(logits + at, mask=at < width, other=float("-inf")).to(tl.float32)
        gradient = tl.exp(x - highest) / total - smoothing / width
        gradient = tl.where(at == label, gradient - (1.0 - smoothing), gradient)
        tl.store(logits + at, gradient * factor, mask=at < width)


def gradient_over_logits(
    logits: Tensor, labels: Tensor, ignored: int, label_smoothing: float, factors: Tensor | None
) -> Tensor:
    """Replaces logits by the gradient of the summed cross-entropy with respect to them, and returns the sum.

    Args:
        logits: (tokens, vocabulary), rows contiguous; overwritten, rounded once to their dtype.
        labels: (tokens,) int64, within the vocabulary or `ignored`.
        ignored: Label of a row without loss.
        label_smoothing: Probability that is spread over all tokens instead of the label (arXiv 1512.00567).
        factors: Factor of each token's loss and gradient, (tokens,); None for 1.

    Returns:
        The sum in nats, a scalar; fp32.
    """
    tokens, width = logits.shape
    losses = torch.empty(tokens, dtype=torch.float32, device=logits.device)
    block = min(_BLOCK, triton.next_power_of_2(width))
    kernel: Any = _gradient_kernel
    kernel[(tokens,)](
        logits,
        logits.stride(0),
        labels,
        labels if factors is None else factors,
        losses,
        width,
        label_smoothing,
        ignored=ignored,
        weighted=factors is not None,
        block=block,
        num_warps=16,
    )
    return losses.sum()
