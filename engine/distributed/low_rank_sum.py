"""PowerSGD (arXiv 1905.13727) between ranks: gradients cross the wire as low-rank factors. Approximate.

torch's own hook compresses the buckets of DistributedDataParallel, which sees a backward pass of the whole model; a
streamed step's gradients come into being layer by layer, tile by tile, and are summed once an update. Algorithm 1 of
the paper on those sums, with its error feedback and its warm start:

    M = gradient + what was not sent before        P = sum of M Q, orthogonalised        Q = sum of Mᵀ P
    the ranks' sum ≈ P Qᵀ                           not sent: M - P (Mᵀ P)ᵀ
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from engine.distributed.data_parallel import WholeSum
from engine.distributed.process_team import ProcessTeam

WHOLE_UPDATES = 10
"""Updates whose gradients are sent whole: the first ones are large and point everywhere (paper, appendix)."""


class LowRankSum:
    """A GradientSum that sends rank · (a + b) numbers for a matrix of a × b, where that is less than half of it.

    Args:
        team: The ranks.
        rank: Of the factors.
        whole_updates: Updates before the compression begins.
    """

    def __init__(self, team: ProcessTeam, rank: int, whole_updates: int = WHOLE_UPDATES) -> None:
        self._team, self._rank, self._whole_updates = team, rank, whole_updates
        self._whole = WholeSum(team)
        self._updates = 0
        self._bases: dict[int, Tensor] = {}
        self._unsent: dict[int, Tensor] = {}

    def __call__(self, gradients: Sequence[Tensor]) -> None:
        """See GradientSum."""
        self._updates += 1
        if self._updates <= self._whole_updates:
            self._whole(gradients)
            return
        packed = [i for i, gradient in enumerate(gradients) if self._is_worth(gradient)]
        self._whole([gradient for i, gradient in enumerate(gradients) if i not in set(packed)])
        matrices = {i: gradients[i].flatten(1) + self._unsent.get(i, 0.0) for i in packed}
        lefts = [matrices[i] @ self._basis(i, matrices[i]) for i in packed]
        self._whole(lefts)
        lefts = [torch.linalg.qr(left)[0] for left in lefts]
        rights = [matrices[i].T @ left for i, left in zip(packed, lefts, strict=True)]
        for i, left, right in zip(packed, lefts, rights, strict=True):
            self._unsent[i] = matrices[i] - left @ right.T
        self._whole(rights)
        for i, left, right in zip(packed, lefts, rights, strict=True):
            self._bases[i] = right
            gradients[i].copy_((left @ right.T).view_as(gradients[i]))

    def _is_worth(self, gradient: Tensor) -> bool:
        if gradient.dim() < 2:
            return False
        rows, columns = gradient.flatten(1).shape
        return 2 * self._rank * (rows + columns) < rows * columns

    def _basis(self, index: int, matrix: Tensor) -> Tensor:
        """The right factor of the update before: the same in every rank, and close to this one's."""
        if index not in self._bases:
            generator = torch.Generator().manual_seed(index)
            drawn = torch.randn((matrix.shape[1], self._rank), generator=generator)
            self._bases[index] = drawn.to(matrix.device, matrix.dtype)
        basis: Tensor = torch.linalg.qr(self._bases[index])[0]
        return basis

    def state_dict(self) -> dict[str, Any]:
        """The factors. What a rank has not sent yet is its own, and is given up when the run is resumed."""
        bases = {str(index): basis.detach().cpu() for index, basis in self._bases.items()}
        return {"updates": self._updates, "bases": bases}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `state_dict`."""
        self._updates = int(state["updates"])
        self._unsent.clear()
        self._bases = {int(index): basis.to(self._team.device) for index, basis in state["bases"].items()}
