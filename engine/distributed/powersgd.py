"""PowerSGD (arXiv 1905.13727): gradients cross the wire as low-rank factors, with what was lost fed back."""

from __future__ import annotations

from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

WHOLE_UPDATES = 2
"""Updates whose gradients are sent whole: DistributedDataParallel rearranges its buckets in the first ones."""


def compress_gradients(model: DistributedDataParallel, rank: int = 1, whole_updates: int = WHOLE_UPDATES) -> None:
    """Makes the processes exchange factors of this rank instead of whole gradients. Approximate.

    Args:
        model: Before its first backward pass.
        rank: Of the factors: a matrix of a × b sends rank · (a + b) numbers.
        whole_updates: Updates before the compression begins; at least 2.
    """
    state = PowerSGDState(
        process_group=model.process_group,
        matrix_approximation_rank=rank,
        start_powerSGD_iter=whole_updates,
        orthogonalization_epsilon=1e-8,
    )
    model.register_comm_hook(state, powerSGD_hook)
