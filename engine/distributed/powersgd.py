"""PowerSGD (arXiv 1905.13727) between ranks, which sends gradients as low-rank factors. Approximate.

torch's own hook compresses the buckets of DistributedDataParallel, which needs a backward pass of the whole model. A
streamed step computes gradients layer by layer, tile by tile, and they are summed once an update. This module applies
Algorithm 1 of the paper to those sums, with its error feedback and its warm start:

    M = gradient + what was not sent before        P = sum of M Q, orthogonalised        Q = sum of Mᵀ P
    the ranks' sum ≈ P Qᵀ                           not sent: M - P (Mᵀ P)ᵀ

An adapter has hundreds of small matrices of a few shapes. Those of one shape are stacked, so that a kernel is launched
once a shape and not once a matrix. All left factors are sent in one message, and so are all right ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from engine.distributed.gradient_sum import AllReduceSum
from engine.distributed.torch_process_group import TorchProcessGroup

WHOLE_UPDATES = 10
"""Updates sent uncompressed, as the first gradients are large and in all directions (paper, appendix)."""

STACK_NUMBERS = 64 << 20
"""Most elements in a stack, which keeps temporaries smaller than the gradients even in full fine-tuning."""


class PowerSgd:
    """A GradientSum that sends rank · (a + b) elements for a matrix of a × b, where that is less than half of it.

    Args:
        group: The ranks.
        rank: Rank of the factors.
        whole_updates: Uncompressed updates before compression begins.
    """

    def __init__(self, group: TorchProcessGroup, rank: int, whole_updates: int = WHOLE_UPDATES) -> None:
        self._group, self._rank, self._whole_updates = group, rank, whole_updates
        self._whole = AllReduceSum(group)
        self._updates = 0
        self._bases: dict[int, Tensor] = {}
        self._drawn: dict[int, Tensor] = {}
        self._unsent: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, gradients: Sequence[Tensor]) -> None:
        """See GradientSum."""
        self._updates += 1
        if self._updates <= self._whole_updates:
            self._whole(gradients)
            return
        stacks = list(self._stacks(gradients))
        packed = {i for stack in stacks for i in stack}
        self._whole([gradient for i, gradient in enumerate(gradients) if i not in packed])
        matrices = [self._matrices(gradients, stack) for stack in stacks]
        lefts = [each @ self._basis(stack, gradients) for stack, each in zip(stacks, matrices, strict=True)]
        self._whole(lefts)
        lefts = [orthonormal_columns(left) for left in lefts]
        rights = [each.mT @ left for each, left in zip(matrices, lefts, strict=True)]
        for each, left, right in zip(matrices, lefts, rights, strict=True):
            each.baddbmm_(left, right.mT, alpha=-1.0)
        self._whole(rights)
        for stack, left, right in zip(stacks, lefts, rights, strict=True):
            self._bases |= dict(zip(stack, right.unbind(0), strict=True))
            sums = left @ right.mT
            torch._foreach_copy_([gradients[i].flatten(1) for i in stack], list(sums.unbind(0)))

    def _stacks(self, gradients: Sequence[Tensor]) -> Iterator[list[int]]:
        """Yields stacks of indices of matrices of one shape that are worth compressing."""
        groups: dict[tuple[Any, ...], list[int]] = {}
        for index, gradient in enumerate(gradients):
            # The flattened form of a non-contiguous gradient may be a copy, which would not write back the sum.
            if self._is_worth(gradient) and gradient.is_contiguous():
                rows, columns = gradient.flatten(1).shape
                groups.setdefault((rows, columns, gradient.dtype, gradient.device), []).append(index)
        for (rows, columns, *_), indices in groups.items():
            most = max(1, STACK_NUMBERS // (rows * columns))
            for start in range(0, len(indices), most):
                yield indices[start : start + most]

    def _matrices(self, gradients: Sequence[Tensor], stack: Sequence[int]) -> Tensor:
        """Adds the gradients to the unsent rest of the update before, in place, (matrices, rows, columns)."""
        added = [gradients[i].flatten(1) for i in stack]
        key = tuple(stack)
        if key not in self._unsent:
            self._unsent[key] = torch.stack(added)
        else:
            torch._foreach_add_(list(self._unsent[key].unbind(0)), added)
        return self._unsent[key]

    def _is_worth(self, gradient: Tensor) -> bool:
        if gradient.dim() < 2:
            return False
        rows, columns = gradient.flatten(1).shape
        return 2 * self._rank * (rows + columns) < rows * columns

    def _basis(self, stack: Sequence[int], gradients: Sequence[Tensor]) -> Tensor:
        """Returns the orthonormalised right factors of the update before, (matrices, columns, rank).

        They are a good start for this update, and the same in all ranks.
        """
        drawn = torch.stack([self._drawn_basis(index, gradients[index]) for index in stack])
        kept = torch.stack([self._bases.get(index, one) for index, one in zip(stack, drawn.unbind(0), strict=True)])
        # A zero column would stay zero, so it is replaced by a random one.
        lost = kept.norm(dim=-2, keepdim=True) == 0.0
        return orthonormal_columns(torch.where(lost, drawn, kept))

    def _drawn_basis(self, index: int, gradient: Tensor) -> Tensor:
        if index not in self._drawn:
            generator = torch.Generator().manual_seed(index)
            drawn = torch.randn((gradient.flatten(1).shape[1], self._rank), generator=generator)
            self._drawn[index] = drawn.to(gradient.device, gradient.dtype)
        return self._drawn[index]

    def state_dict(self) -> dict[str, Any]:
        """Returns the factors. The unsent rest is each rank's own, and is dropped when the run resumes."""
        # A factor is a view into a stack, so it is cloned for a file to hold the factor alone.
        bases = {str(index): basis.detach().cpu().clone() for index, basis in self._bases.items()}
        return {"updates": self._updates, "bases": bases}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        self._updates = int(state["updates"])
        self._unsent.clear()
        self._bases = {int(index): basis.to(self._group.device) for index, basis in state["bases"].items()}


def orthonormal_columns(x: Tensor) -> Tensor:
    """Orthonormalises the columns of each matrix by modified Gram-Schmidt, applied twice (Björck 1967).

    It handles one column of all matrices at a time, because a QR factorisation runs one matrix after another on a GPU.
    A column that depends on those before it becomes zero and adds nothing to a product, so that matrices of lower rank
    stay exact.

    Args:
        x: (matrices, rows, columns), with at least as many rows as columns, fp32 or wider.

    Returns:
        The same shape and dtype.
    """
    columns = list(x.unbind(-1))
    tiny = torch.finfo(x.dtype).tiny
    limit = 100 * torch.finfo(x.dtype).eps
    for i, column in enumerate(columns):
        length = column.norm(dim=-1, keepdim=True)
        found = column / length.clamp_min(tiny)
        # The second pass removes the rounding error of the first, which is large where little of the column is new.
        for _ in range(2 if i else 0):
            for before in columns[:i]:
                found = found - (before * found).sum(-1, keepdim=True) * before
        new = found.norm(dim=-1, keepdim=True)
        columns[i] = torch.where(new > limit, found / new.clamp_min(tiny), torch.zeros_like(found))
    return torch.stack(columns, dim=-1)
