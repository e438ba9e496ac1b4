"""Limits weight decay to matrices; vectors (norms, biases, DoRA's magnitudes) get a group of their own without decay.

Decay pulls a matrix towards zero, against its gradient. The model depends on the scale of a norm or a magnitude.
DoRA's magnitude is the norm of the base weight's rows, so that its decay would erode the base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer


def spare_vectors(optimizer: Optimizer) -> None:
    """Moves each group's vectors into a group of their own behind all groups, with the same settings but no decay."""
    for group in list(optimizer.param_groups):
        vectors = [p for p in group["params"] if p.ndim <= 1]
        matrices = [p for p in group["params"] if p.ndim > 1]
        if vectors and matrices:
            group["params"] = matrices
            optimizer.add_param_group({**group, "params": vectors, "weight_decay": 0.0})
        elif vectors:
            group["weight_decay"] = 0.0


def with_vectors_apart(state: Mapping[str, Any], groups: Sequence[Sequence[int]]) -> Mapping[str, Any]:
    """Regroups an optimiser's state as `spare_vectors` does, where an earlier version saved vectors with matrices.

    Args:
        state: State in the format of torch's optimisers.
        groups: Positions of each present group's weights among all trained weights; a saved group lists its weights
            in this order.

    Returns:
        The regrouped state; the same object where it is grouped so already, or in an unknown way.
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
