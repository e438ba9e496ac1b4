"""Base of kernels that take tensors tokens first, (1, n, heads, head_dim), and several documents in one call."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from engine.attention.backend import AttentionBackend


@dataclass(frozen=True, kw_only=True)
class Extent:
    """Lengths, mask and scale of one kernel call.

    With several documents all tensors lose their first dimension, (tokens, heads, head_dim), and logsumexp is
    (heads, tokens).
    """

    queries: int
    "Queries of the block, or of the longest document."
    keys: int
    causal: bool
    scale: float
    ends: Tensor | None = None
    "Cumulative document lengths from 0, (documents + 1,) int32; None for one block."


class TokensFirst(AttentionBackend):
    """Converts the interface's layout to the kernels' by views."""

    @abstractmethod
    def attend(self, q: Tensor, k: Tensor, v: Tensor, extent: Extent) -> tuple[Tensor, Tensor]:
        """Calls the kernel on tensors tokens first, q (1, n, heads, head_dim); returns (out, logsumexp). See Extent."""

    @abstractmethod
    def attend_backward(
        self, grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, extent: Extent
    ) -> Sequence[Tensor]:
        """Calls the kernel's backward on tensors tokens first, q (1, n, heads, head_dim); returns (dq, dk, dv)."""

    def extent_of(self, borders: Sequence[int], scale: float, device: torch.device) -> Extent:
        """Returns the extent of packed documents, for borders as in AttentionBackend.forward_documents."""
        return _documents(tuple(borders), scale, device)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        """See AttentionBackend."""
        extent = Extent(queries=q.shape[2], keys=k.shape[2], causal=causal, scale=scale)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out, logsumexp = self.attend(q, k, v, extent)
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
        extent = Extent(queries=q.shape[2], keys=k.shape[2], causal=causal, scale=scale)
        grad_out, q, k, v, out = (x.transpose(1, 2) for x in (grad_out, q, k, v, out))
        # The kernels ignore the strides of the logsumexp.
        dq, dk, dv = self.attend_backward(grad_out, q, k, v, out, logsumexp.contiguous(), extent)
        return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2)

    def forward_documents(
        self, q: Tensor, k: Tensor, v: Tensor, *, borders: Sequence[int], scale: float
    ) -> tuple[Tensor, Tensor]:
        """See AttentionBackend. Computes all documents in one call."""
        q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))
        out, logsumexp = self.attend(q, k, v, self.extent_of(borders, scale, q.device))
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
        """See AttentionBackend. Computes all documents in one call."""
        grad_out, q, k, v, out = (x[0].transpose(0, 1) for x in (grad_out, q, k, v, out))
        extent = self.extent_of(borders, scale, q.device)
        gradients = self.attend_backward(grad_out, q, k, v, out, logsumexp[0].contiguous(), extent)
        dq, dk, dv = (x.transpose(0, 1).unsqueeze(0) for x in gradients)
        return dq, dk, dv


@lru_cache(maxsize=2)  # every layer asks for the same
def _documents(borders: tuple[int, ...], scale: float, device: torch.device) -> Extent:
    ends = torch.tensor(borders, dtype=torch.int32)
    if device.type == "cuda":
        ends = ends.pin_memory().to(device, non_blocking=True)
    longest = max(b - a for a, b in pairwise(borders))
    return Extent(queries=longest, keys=longest, causal=True, scale=scale, ends=ends)
