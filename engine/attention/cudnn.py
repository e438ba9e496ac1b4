"""cuDNN's fused attention, on Hopper 1.6 to 1.9 times as fast as FlashAttention-2 (docs/benchmarks.md)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from engine.attention.backend import AttentionBackend, needs_ampere, tokens_first
from engine.attention.torch_flash import TorchFlash

_aten = torch.ops.aten


SHORTEST = 1024
"Fewest tokens of a document for which cuDNN computes documents of equal length as a batch."

WIDEST = 256
"Widest head that cuDNN computes on any GPU, forward and backward."
_WIDE_SINCE = 91000
"First version of cuDNN with heads wider than 128 on Hopper."


def wide_head_refusal(capability: tuple[int, int], version: int, head_dim: int) -> str | None:
    """Returns the reason why cuDNN does not support heads wider than 128; None where it does.

    torch's own choice of a kernel has the same condition (check_cudnn_tensor_shapes of its sdp_utils.cpp).
    """
    if capability == (9, 0) and version >= _WIDE_SINCE:
        return None
    return f"head size {head_dim} needs Hopper and cuDNN 9.10 or newer"


class CudnnFlash(AttentionBackend):
    """Wraps `aten._scaled_dot_product_cudnn_attention`; supports grouped heads, causal aligned top left.

    Args:
        documents: Computes packed documents of several lengths; None for TorchFlash.
    """

    name = "cudnn"
    borders_to_check = (*AttentionBackend.borders_to_check, (0, SHORTEST, 2 * SHORTEST))

    def __init__(self, documents: AttentionBackend | None = None) -> None:
        self._documents = documents or TorchFlash()

    def unavailable(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """See AttentionBackend. Needs Ampere or newer, 16-bit, a head size that is a multiple of 8 up to 128.

        On Hopper cuDNN computes heads up to 256 from version 9.10 on.
        """
        reason = needs_ampere(device, dtype, head_dim, largest_head=WIDEST)
        if reason is None and head_dim > 128:
            version = torch.backends.cudnn.version() or 0
            reason = wide_head_refusal(torch.cuda.get_device_capability(device), version, head_dim)
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

    # cuDNN makes a new plan for every length, and packed documents have many lengths. Packed windows of one length
    # become a batch.

    def forward_documents(
        self, q: Tensor, k: Tensor, v: Tensor, *, borders: Sequence[int], scale: float
    ) -> tuple[Tensor, Tensor]:
        """See AttentionBackend."""
        rows = equal_length(borders)
        if rows is None:
            return self._documents.forward_documents(q, k, v, borders=borders, scale=scale)
        q, k, v = (as_batch(x, rows) for x in (q, k, v))
        out, logsumexp = self.forward(q, k, v, causal=True, scale=scale)
        return as_row(out), as_row(logsumexp)

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
        rows = equal_length(borders)
        if rows is None:
            return self._documents.backward_documents(grad_out, q, k, v, out, logsumexp, borders=borders, scale=scale)
        tensors = (as_batch(x, rows) for x in (grad_out, q, k, v, out, logsumexp))
        dq, dk, dv = (as_row(x) for x in self.backward(*tensors, causal=True, scale=scale))
        return dq, dk, dv


def equal_length(borders: Sequence[int]) -> int | None:
    """Returns the documents' length if all are of equal length and have at least SHORTEST tokens; else None."""
    lengths = {stop - start for start, stop in pairwise(borders)}
    length = lengths.pop()
    return length if not lengths and length >= SHORTEST else None


def as_batch(x: Tensor, rows: int) -> Tensor:
    """Views (1, heads, documents x rows, ...) as (documents, heads, rows, ...)."""
    return x[0].reshape(x.shape[1], -1, rows, *x.shape[3:]).transpose(0, 1)


def as_row(x: Tensor) -> Tensor:
    """Reshapes (documents, heads, rows, ...) to (1, heads, documents x rows, ...)."""
    return x.transpose(0, 1).flatten(1, 2).unsqueeze(0)
