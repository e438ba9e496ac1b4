"""Memory-efficient attention (CUTLASS, arXiv 2112.05682), the only fused kernel for Turing GPUs (RTX 20-series)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from engine.attention.backend import AttentionBackend, repeat_heads, sum_groups, tokens_first

_aten = torch.ops.aten
_ROW_PADDING = 32  # the kernel stores logsumexp for queries rounded up to this many


class MemoryEfficient(AttentionBackend):
    """Wraps `aten._scaled_dot_product_efficient_attention`; repeats grouped heads, causal aligned top left."""

    name = "efficient"

    def unavailable(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """See AttentionBackend. Needs a CUDA GPU, Ampere or newer for bf16, and a head size that is a multiple of 8."""
        if device.type != "cuda" or torch.version.hip:
            return "needs an NVIDIA GPU"
        if dtype is torch.bfloat16 and torch.cuda.get_device_capability(device) < (8, 0):
            return "bf16 needs compute capability 8.0 (Ampere) or newer: use fp16"
        if dtype not in (torch.bfloat16, torch.float16, torch.float32):
            return f"computes in bf16, fp16 or fp32, not {dtype}"
        if head_dim % 8:
            return f"head size {head_dim} is not a multiple of 8"
        return None

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        """See AttentionBackend."""
        k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
        out, logsumexp, *_ = _aten._scaled_dot_product_efficient_attention(
            q, k, v, None, True, 0.0, causal, scale=scale
        )
        return out, logsumexp[..., : q.shape[2]]

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
        kv_heads = k.shape[1]
        k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
        # Padding rows get probability exp(x - inf) = 0.
        rows = pad(logsumexp, (0, -logsumexp.shape[-1] % _ROW_PADDING), value=math.inf)
        no_dropout = torch.zeros((), dtype=torch.int64, device=q.device)
        dq, dk, dv, _ = _aten._scaled_dot_product_efficient_attention_backward(
            grad_out,
            q,
            k,
            v,
            None,
            tokens_first(out),
            rows,
            no_dropout,
            no_dropout,
            0.0,
            [True, True, True, False],
            causal,
            scale=scale,
        )
        return dq, sum_groups(dk, kv_heads), sum_groups(dv, kv_heads)
