"""torch's flash attention for CPUs, so that the block-wise code path of a GPU runs in tests anywhere."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.attention.backend import AttentionBackend, repeat_heads, sum_groups

_aten = torch.ops.aten


class CpuFlash(AttentionBackend):
    """Wraps `aten._scaled_dot_product_flash_attention_for_cpu`; causal aligned top left."""

    name = "cpu"

    def unavailable(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:  # noqa: ARG002
        """See AttentionBackend. Supports every dtype on a CPU."""
        return None if device.type == "cpu" else "serves tensors on a CPU only"

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        """See AttentionBackend."""
        k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
        out, logsumexp = _aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)
        return out, logsumexp

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
        dq, dk, dv = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad_out, q, k, v, out, logsumexp, 0.0, causal, scale=scale
        )
        return dq, sum_groups(dk, kv_heads), sum_groups(dv, kv_heads)
