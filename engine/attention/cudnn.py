"""cuDNN's fused attention: on Hopper about twice the speed of FlashAttention-2 (docs/benchmarks.md)."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.attention.backend import AttentionBackend

_aten = torch.ops.aten


class CudnnFlash(AttentionBackend):
    """`aten._scaled_dot_product_cudnn_attention`; grouped heads natively, causal aligned top left."""

    name = "cudnn"

    def unavailable(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """Ampere or newer, 16-bit, head sizes that are a multiple of 8 up to 128."""
        if device.type != "cuda" or torch.version.hip:
            return "needs an NVIDIA GPU"
        if torch.cuda.get_device_capability(device) < (8, 0):
            return "needs compute capability 8.0 (Ampere) or newer"
        if dtype not in (torch.bfloat16, torch.float16):
            return f"computes in bf16 or fp16, not {dtype}"
        if head_dim % 8 or head_dim > 128:
            return f"head size {head_dim} is not a multiple of 8 up to 128"
        if not torch.backends.cudnn.is_available():
            return "this torch has no cuDNN"
        return None

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
            out,
            logsumexp.unsqueeze(-1),
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
