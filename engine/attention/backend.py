"""Interface of the flash attention kernels.

Blocks of one softmax row are computed separately and merged by their logsumexp. The backward of a block takes the
output and logsumexp of the *whole* row, so that its probabilities are the global ones (FlashAttention,
arXiv 2205.14135, section 3; block-wise merge as in Ring Attention, arXiv 2310.01889).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor


class AttentionBackend(ABC):
    """Computes exact attention over one block. Stateless.

    Shapes: q, out, grad_out (1, heads, queries, head_dim); k, v (1, kv_heads, keys, head_dim), heads a multiple
    of kv_heads, last dimension contiguous; logsumexp (1, heads, queries) in natural log, fp32 or wider.
    `causal` lets query r see the keys t <= r, and needs as many queries as keys.
    """

    name: ClassVar[str]
    borders_to_check: ClassVar[tuple[tuple[int, ...], ...]] = ((0, 100, 101, 256),)
    "Borders of packed documents that the backend must compute correctly before use, one case for each code path."

    @abstractmethod
    def unavailable(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """Returns the reason why this backend does not support such tensors here; None if it does."""

    @abstractmethod
    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        """Computes out (1, heads, queries, head_dim) and logsumexp (1, heads, queries) of softmax(scale q kᵀ) v."""

    @abstractmethod
    def backward(
        self,
        grad_out: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        logsumexp: Tensor,
        *,
        causal: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Computes (dq, dk, dv) of this block, in the shapes of (q, k, v), from the whole rows' out and logsumexp."""

    def forward_documents(
        self, q: Tensor, k: Tensor, v: Tensor, *, borders: Sequence[int], scale: float
    ) -> tuple[Tensor, Tensor]:
        """Computes causal attention inside each of several packed documents.

        Args:
            q, k, v: As in `forward`, with as many queries as keys.
            borders: First row of each document, from 0, and the number of rows.
            scale: Multiplies q kᵀ.

        Returns:
            out (1, heads, queries, head_dim) and logsumexp (1, heads, queries).
        """
        parts = [self.forward(*_rows(a, b, q, k, v), causal=True, scale=scale) for a, b in pairwise(borders)]
        return torch.cat([out for out, _ in parts], 2), torch.cat([logsumexp for _, logsumexp in parts], 2)

    def backward_documents(
        self,
        grad_out: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        logsumexp: Tensor,
        *,
        borders: Sequence[int],
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Computes (dq, dk, dv) of `forward_documents`, in the shapes of (q, k, v)."""
        tensors = (grad_out, q, k, v, out, logsumexp)
        parts = [self.backward(*_rows(a, b, *tensors), causal=True, scale=scale) for a, b in pairwise(borders)]
        dq, dk, dv = (torch.cat(gradients, 2) for gradients in zip(*parts, strict=True))
        return dq, dk, dv


def _rows(start: int, stop: int, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x[:, :, start:stop] for x in tensors)


def tokens_first(x: Tensor) -> Tensor:
    """Lays out x (1, heads, n, d) with the heads of a token adjacent in memory, as the kernels write their outputs.

    Two kernels assume this layout of `out` and ignore its strides. The memory-efficient one takes a row's length from
    the head count. torch plans cuDNN's backward once for shapes and strides of q, k and v, with the `out` of that call.
    """
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def repeat_heads(x: Tensor, heads: int) -> Tensor:
    """Repeats KV heads for kernels without grouped heads: (1, kv_heads, n, d) to (1, heads, n, d)."""
    groups = heads // x.shape[1]
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)


def sum_groups(x: Tensor, kv_heads: int) -> Tensor:
    """Sums the gradients of repeated heads: (1, heads, n, d) to (1, kv_heads, n, d)."""
    if x.shape[1] == kv_heads:
        return x
    batch, heads, n, d = x.shape
    return x.reshape(batch, kv_heads, heads // kv_heads, n, d).sum(2)


def needs_ampere(device: torch.device, dtype: torch.dtype, head_dim: int, *, largest_head: int) -> str | None:
    """Returns the reason why a 16-bit kernel for Ampere and newer does not support such tensors; None if it does."""
    if device.type != "cuda" or torch.version.hip:
        return "needs an NVIDIA GPU"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "needs compute capability 8.0 (Ampere) or newer"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"computes in bf16 or fp16, not {dtype}"
    if head_dim % 8 or head_dim > largest_head:
        return f"head size {head_dim} is not a multiple of 8 up to {largest_head}"
    return None
