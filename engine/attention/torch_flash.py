"""FlashAttention-2 as built into torch (arXiv 2307.08691): Ampere and newer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from engine.attention.backend import AttentionBackend, needs_ampere

_aten = torch.ops.aten


class TorchFlash(AttentionBackend):
    """`aten._flash_attention_forward`, layout (1, n, heads, head_dim); grouped heads natively."""

    name = "flash"

    def unavailable(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """Ampere or newer, 16-bit, head sizes that are a multiple of 8 up to 256."""
        return needs_ampere(device, dtype, head_dim, largest_head=256)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        """See AttentionBackend."""
        out, logsumexp, *_ = _aten._flash_attention_forward(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            None,
            None,
            q.shape[2],
            k.shape[2],
            0.0,
            causal,
            False,
            scale=scale,
        )
        return out.transpose(1, 2), logsumexp

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
        """See AttentionBackend."""
        dq, dk, dv = _aten._flash_attention_backward(
            grad_out.transpose(1, 2),
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            out.transpose(1, 2),
            logsumexp.contiguous(),  # the kernel ignores its strides
            None,
            None,
            q.shape[2],
            k.shape[2],
            0.0,
            causal,
            torch.zeros(2, dtype=torch.uint64, device=q.device),
            torch.empty(0, dtype=torch.uint64, device=q.device),
            scale=scale,
        )
        return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2)

    def forward_documents(
        self, q: Tensor, k: Tensor, v: Tensor, *, borders: Sequence[int], scale: float
    ) -> tuple[Tensor, Tensor]:
        """See AttentionBackend; all documents in one call."""
        ends, longest = document_lengths(borders, q.device)
        out, logsumexp, *_ = _aten._flash_attention_forward(
            *(without_batch(x) for x in (q, k, v)), ends, ends, longest, longest, 0.0, True, False, scale=scale
        )
        return out.transpose(0, 1).unsqueeze(0), logsumexp.unsqueeze(0)

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
        """See AttentionBackend; all documents in one call."""
        ends, longest = document_lengths(borders, q.device)
        gradients = _aten._flash_attention_backward(
            *(without_batch(x) for x in (grad_out, q, k, v, out)),
            logsumexp[0].contiguous(),
            ends,
            ends,
            longest,
            longest,
            0.0,
            True,
            torch.zeros(2, dtype=torch.uint64, device=q.device),
            torch.empty(0, dtype=torch.uint64, device=q.device),
            scale=scale,
        )
        dq, dk, dv = (x.transpose(0, 1).unsqueeze(0) for x in gradients)
        return dq, dk, dv


def without_batch(x: Tensor) -> Tensor:
    """(1, heads, n, head_dim) as the (n, heads, head_dim) that the call for several documents takes."""
    return x[0].transpose(0, 1)


def document_lengths(borders: Sequence[int], device: torch.device) -> tuple[Tensor, int]:
    """The borders as the kernel takes them, (documents + 1,) int32, and the length of the longest document."""
    ends = torch.tensor(borders, dtype=torch.int32).pin_memory().to(device, non_blocking=True)
    return ends, max(b - a for a, b in pairwise(borders))
