"""FlashAttention-2 as built into torch (arXiv 2307.08691), for Ampere and newer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.attention.backend import needs_ampere
from engine.attention.tokens_first import Extent, TokensFirst

_aten = torch.ops.aten


class TorchFlash(TokensFirst):
    """Wraps `aten._flash_attention_forward`, which supports grouped heads."""

    name = "flash"

    def unavailable(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """See AttentionBackend. Needs Ampere or newer, 16-bit, a head size that is a multiple of 8 up to 256."""
        return needs_ampere(device, dtype, head_dim, largest_head=256)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, extent: Extent) -> tuple[Tensor, Tensor]:
        """See TokensFirst."""
        lengths = (extent.ends, extent.ends, extent.queries, extent.keys)
        out, logsumexp, *_ = _aten._flash_attention_forward(
            q, k, v, *lengths, 0.0, extent.causal, False, scale=extent.scale
        )
        return out, logsumexp

    def attend_backward(
        self, grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, extent: Extent
    ) -> Sequence[Tensor]:
        """See TokensFirst."""
        lengths = (extent.ends, extent.ends, extent.queries, extent.keys)
        gradients: Sequence[Tensor] = _aten._flash_attention_backward(
            grad_out,
            q,
            k,
            v,
            out,
            logsumexp,
            *lengths,
            0.0,
            extent.causal,
            torch.zeros(2, dtype=torch.uint64, device=q.device),
            torch.empty(0, dtype=torch.uint64, device=q.device),
            scale=extent.scale,
        )
        return gradients
