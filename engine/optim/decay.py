"""Weight decay is for matrices: vectors (norms, biases, DoRA's magnitudes) get a group of their own, without any.

A matrix that decays is pulled towards zero, which its gradient holds against. A norm or a magnitude has a scale that
the model depends on: DoRA's magnitude is the norm of the base weight's rows, so that its decay would erode the base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer


def spare_vectors(optimizer: Optimizer) -> None:
    """Moves the vectors out of every group into one behind all groups, with the same settings but no decay."""
    for group in list(optimizer.param_groups):
        vectors = [p for p in group["params"] if p.ndim <= 1]
        matrices = [p for p in group["params"] if p.ndim > 1]
        if vectors and matrices:
            group["params"] = matrices
            optimizer.add_param_group({**group, "params": vectors, "weight_decay": 0.0})
        elif vectors:
            group["weight_decay"] = 0.0


def with_vectors_apart(state: Mapping[str, Any], groups: Sequence[Sequence[int]]) -> Mapping[str, Any]:
    """An optimiser's state as `spare_vectors` groups it, where an earlier version saved vectors among the matrices.

    Args:
        state: As torch's optimisers save it.
        groups: Positions of each present group's weights among all that are trained; in a saved group, weights stand
            in this order.

    Returns:
        The state itself where it is grouped so already, or in a way that is not known.
    """
    saved = state["param_groups"]
    counts, before = [len(group) for group in groups], [len(group["params"]) for group in saved]
    if counts == before or len(counts) < len(before) or sum(counts) != sum(before):
        return state
    matrices, vectors = groups[: len(before)], groups[len(before) :]
    made = [dict(group) for group in saved]
    for apart in vectors:
        source = next((i for i, whole in enumerate(before) if whole == len(matrices[i]) + len(apart)), None)
        if source is None:
            return state
        ids = dict(zip(sorted([*matrices[source], *apart]), saved[source]["params"], strict=True))
        made[source]["params"] = [ids[position] for position in matrices[source]]
        made.append({**saved[source], "params": [ids[position] for position in apart], "weight_decay": 0.0})
    return {**state, "param_groups": made}
