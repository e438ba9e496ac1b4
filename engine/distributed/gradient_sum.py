"""Sums gradients over ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from engine.distributed.torch_process_group import TorchProcessGroup

BUCKET_NUMBERS = 16 << 20
"""Most elements of a bucket, unless it holds a single gradient."""


class GradientSum(Protocol):
    """Replaces gradients by their sum over the ranks, exact or approximate."""

    def __call__(self, gradients: Sequence[Tensor]) -> None:
        """Sums in place; every rank passes the same tensors, of any shapes, in the same order."""


class AllReduceSum:
    """Computes the exact sum by all-reduce, in buckets, because one all-reduce a gradient would be bound by latency."""

    def __init__(self, group: TorchProcessGroup) -> None:
        self._group = group

    def __call__(self, gradients: Sequence[Tensor]) -> None:
        """See GradientSum."""
        bucket: list[Tensor] = []
        for gradient in gradients:
            if bucket and sum(one.numel() for one in bucket) + gradient.numel() > BUCKET_NUMBERS:
                self._send(bucket)
                bucket = []
            bucket.append(gradient)
        if bucket:
            self._send(bucket)

    def _send(self, bucket: Sequence[Tensor]) -> None:
        if len(bucket) == 1 and bucket[0].is_contiguous():
            self._group.sum_tensor(bucket[0])
            return
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        self._group.sum_tensor(flat)
        for gradient, part in zip(bucket, flat.split([one.numel() for one in bucket]), strict=True):
            gradient.copy_(part.view_as(gradient))
