"""FlashAttention-2 of the flash-attn package (arXiv 2307.08691), where somebody has compiled it.

torch carries the same algorithm; the package is ahead of it by a release or two, and which is faster on a card is
measured (engine.attention.select). Its private functions are used, because the public one keeps the logsumexp to
itself and its backward knows no rows that were merged from several blocks.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from engine.attention.backend import AttentionBackend, needs_ampere
from engine.attention.torch_flash import document_lengths, without_batch

_EVERYWHERE = {"window_size_left": -1, "window_size_right": -1, "softcap": 0.0, "alibi_slopes": None}


class FlashAttnPackage(AttentionBackend):
    """`flash_attn.flash_attn_interface` 2.8, layout (1, n, heads, head_dim); grouped heads natively."""

    name = "flash-attn"

    def unavailable(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """Ampere or newer, 16-bit, head sizes that are a multiple of 8 up to 256, and the package."""
        reason = needs_ampere(device, dtype, head_dim, largest_head=256)
        return _interface_or_reason()[1] if reason is None else reason

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        """See AttentionBackend."""
        out, logsumexp, *_ = _interface()._flash_attn_forward(
            *(x.transpose(1, 2) for x in (q, k, v)),
            dropout_p=0.0,
            softmax_scale=scale,
            causal=causal,
            return_softmax=False,
            **_EVERYWHERE,
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
        rows = [x.transpose(1, 2) for x in (grad_out, q, k, v, out)]
        gradients = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in rows[1:4]]
        _interface()._flash_attn_backward(
            *rows,
            logsumexp.contiguous(),  # the kernel ignores its strides
            *gradients,
            dropout_p=0.0,
            softmax_scale=scale,
            causal=causal,
            deterministic=False,
            **_EVERYWHERE,
        )
        dq, dk, dv = (x.transpose(1, 2) for x in gradients)
        return dq, dk, dv

    def forward_documents(
        self, q: Tensor, k: Tensor, v: Tensor, *, borders: Sequence[int], scale: float
    ) -> tuple[Tensor, Tensor]:
        """See AttentionBackend; all documents in one call."""
        ends, longest = document_lengths(borders, q.device)
        out, logsumexp, *_ = _interface()._flash_attn_varlen_forward(
            *(without_batch(x) for x in (q, k, v)),
            ends,
            ends,
            longest,
            longest,
            dropout_p=0.0,
            softmax_scale=scale,
            causal=True,
            return_softmax=False,
            **_EVERYWHERE,
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
        rows = [without_batch(x) for x in (grad_out, q, k, v, out)]
        gradients = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in rows[1:4]]
        _interface()._flash_attn_varlen_backward(
            *rows,
            logsumexp[0].contiguous(),
            *gradients,
            ends,
            ends,
            longest,
            longest,
            dropout_p=0.0,
            softmax_scale=scale,
            causal=True,
            deterministic=False,
            **_EVERYWHERE,
        )
        dq, dk, dv = (x.transpose(0, 1).unsqueeze(0) for x in gradients)
        return dq, dk, dv


def _interface() -> ModuleType:
    module, reason = _interface_or_reason()
    if module is None:
        raise RuntimeError(reason)
    return module


@cache
def _interface_or_reason() -> tuple[ModuleType | None, str | None]:
    """The package's functions, or why there are none."""
    try:
        return importlib.import_module("flash_attn.flash_attn_interface"), None
    except ModuleNotFoundError:
        return None, "the flash-attn package is not installed"
    except (ImportError, OSError, RuntimeError) as error:  # compiled against another torch
        return None, f"the flash-attn package does not load: {' '.join(str(error).split())}"
