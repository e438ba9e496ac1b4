"""Heads whose values have another width than their keys, on kernels for equal ones.

The narrower of the two is filled up with zeros. Zeros in q and k add nothing to the scores, zeros in v only columns of
zeros to the output, which are cut off again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from engine.attention.backend import AttentionBackend


def for_heads(backend: AttentionBackend, k: Tensor, v: Tensor) -> AttentionBackend:
    """Returns the backend, or one over it where keys k and values v, (1, kv_heads, n, width), differ in width."""
    return backend if k.shape[-1] == v.shape[-1] else UnequalHeads(backend)


class UnequalHeads(AttentionBackend):
    """Fills up keys or values, and has another backend compute.

    Args:
        backend: Computes heads of the wider width.
    """

    name = "unequal"

    def __init__(self, backend: AttentionBackend) -> None:
        self._backend = backend

    def unavailable(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """See AttentionBackend; `head_dim` is the wider width."""
        return self._backend.unavailable(device, dtype, head_dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        """See AttentionBackend."""
        out, logsumexp = self._backend.forward(*_filled(q, k, v), causal=causal, scale=scale)
        return out[..., : v.shape[-1]], logsumexp

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
        tensors = (*_filled(grad_out, q, k, v, out), logsumexp)
        return _cut(self._backend.backward(*tensors, causal=causal, scale=scale), q, k, v)

    def forward_documents(
        self, q: Tensor, k: Tensor, v: Tensor, *, borders: Sequence[int], scale: float
    ) -> tuple[Tensor, Tensor]:
        """See AttentionBackend."""
        out, logsumexp = self._backend.forward_documents(*_filled(q, k, v), borders=borders, scale=scale)
        return out[..., : v.shape[-1]], logsumexp

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
        tensors = (*_filled(grad_out, q, k, v, out), logsumexp)
        return _cut(self._backend.backward_documents(*tensors, borders=borders, scale=scale), q, k, v)


def _filled(*tensors: Tensor) -> list[Tensor]:
    """Fills tensors up to the width of the widest."""
    width = max(x.shape[-1] for x in tensors)
    return [x if x.shape[-1] == width else pad(x, (0, width - x.shape[-1])) for x in tensors]


def _cut(gradients: Sequence[Tensor], *like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (x[..., : there.shape[-1]] for x, there in zip(gradients, like, strict=True))
    return dq, dk, dv
