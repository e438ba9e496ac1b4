"""cuDNN's fused attention: on Hopper 1.6 to 1.9 times the speed of FlashAttention-2 (docs/benchmarks.md)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.attention.backend import AttentionBackend, needs_ampere, tokens_first
from engine.attention.torch_flash import TorchFlash

_aten = torch.ops.aten


class CudnnFlash(AttentionBackend):
    """`aten._scaled_dot_product_cudnn_attention`; grouped heads natively, causal aligned top left."""

    name = "cudnn"

    def unavailable(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """Ampere or newer, 16-bit, head sizes that are a multiple of 8 up to 128."""
        reason = needs_ampere(device, dtype, head_dim, largest_head=128)
        if reason is None and not torch.backends.cudnn.is_available():
            return "this torch has no cuDNN"
        return reason

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        """See AttentionBackend."""
        result = _aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, causal, False, scale=scale)
        return result[0], result[1].view(q.shape[:3])

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
        no_dropout = torch.zeros((), dtype=torch.int64, device=q.device)
        dq, dk, dv = _aten._scaled_dot_product_cudnn_attention_backward(
            grad_out,
            q,
            k,
            v,
            tokens_first(out),
            logsumexp.contiguous().unsqueeze(-1),
            no_dropout,
            no_dropout,
            None,
            None,
            None,
            q.shape[2],
            k.shape[2],
            0.0,
            causal,
            scale=scale,
        )
        return dq, dk, dv

    # cuDNN plans anew for every length that it meets, and packed documents have every length.

    def forward_documents(
        self, q: Tensor, k: Tensor, v: Tensor, *, borders: Sequence[int], scale: float
    ) -> tuple[Tensor, Tensor]:
        """See AttentionBackend."""
        return TorchFlash().forward_documents(q, k, v, borders=borders, scale=scale)

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
        """See AttentionBackend."""
        return TorchFlash().backward_documents(grad_out, q, k, v, out, logsumexp, borders=borders, scale=scale)
