"""FlashAttention-2 as built into torch (arXiv 2307.08691): Ampere and newer."""

from __future__ import annotations

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
            logsumexp,
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
