"""Sums of gradients over ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from engine.distributed.torch_process_group import TorchProcessGroup

BUCKET_NUMBERS = 16 << 20
"""Numbers that go out in one message."""


class GradientSum(Protocol):
    """Replaces gradients by their sum over the ranks, exactly or nearly."""

    def __call__(self, gradients: Sequence[Tensor]) -> None:
        """In place; the same tensors in the same order in every rank."""


class AllReduceSum:
    """The exact sum, many gradients in one message: a collective for each would pay its latency hundreds of times."""

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
