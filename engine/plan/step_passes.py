"""Counts the passes of a streamed step over its layers and their keys (engine.streaming). Pure arithmetic.

Layers of each kind of attention are counted by themselves: they store other widths, and see other keys. A run on a CPU
that counts the bytes of its copies holds these figures (tests/plan/test_moved_bytes.py).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from engine.models.attended import AttendedShape
from engine.plan.stream_plan import StreamPlan
from engine.plan.window_ring import layers_of_ring
from engine.plan.workload import Workload


def tiles_of(work: Workload, plan: StreamPlan) -> int:
    """Returns the number of tiles of a window."""
    return -(-work.context // min(plan.tile, work.context))


def graphs_kept(work: Workload, plan: StreamPlan) -> int:
    """Returns the layers whose graph a single tile keeps between the passes."""
    return min(plan.keep_layers, work.spec.layers) if tiles_of(work, plan) == 1 else 0


def repeated_layers(layers: int, every: int) -> int:
    """Returns the layer passes that compute inputs again which were not kept; those of the last segment still exist."""
    return (-(-layers // every) - 1) * (every - 1)


def in_ring(kind: AttendedShape, work: Workload, plan: StreamPlan) -> bool:
    """Whether layers of a kind keep the keys of their window alone, on the device."""
    return kind.window is not None and kind.use == "own" and layers_of_ring(work.spec, plan.tile, work.context)[0] > 0


def is_paged(kind: AttendedShape, work: Workload, plan: StreamPlan) -> bool:
    """Whether keys and values of a kind wait on the host, from where they come a page at a time."""
    return plan.kv_home == "host" and work.on_gpu and not in_ring(kind, work, plan)


def saves_kv(kind: AttendedShape, work: Workload, plan: StreamPlan) -> bool:
    """Whether keys and values are saved beside a kind's attention outputs.

    Those of a single tile serve no other, and pages are filled again by the layer itself.
    """
    return plan.stash and kind.saves_kv and tiles_of(work, plan) > 1 and not is_paged(kind, work, plan)


@dataclass(frozen=True, kw_only=True)
class Refilled:
    """Layers of a kind whose keys and values exist once more for the backward pass."""

    kind: AttendedShape
    saved: float
    "Layers, or parts of one, whose keys come from where they were saved."
    computed: float
    "The same of those that the layer computes again, from its input."


def refilled(work: Workload, plan: StreamPlan) -> tuple[Refilled, ...]:
    """Returns how each kind's keys and values are there for the backward pass.

    The last layer of a shape finds its own in the cache that they share, and layers that share keys keep them. A ring
    lacks all tiles but the last.
    """
    tiles = tiles_of(work, plan)
    if tiles == 1:
        return ()
    before = (tiles - 1) * plan.tile / work.context
    held, found = set(), []
    for kind in work.spec.attentions:
        if kind.use != "own":
            continue
        layers = kind.layers * before
        if not in_ring(kind, work, plan):
            layers = kind.layers - (kind.stored not in held)
            held.add(kind.stored)
        saved = layers if saves_kv(kind, work, plan) else 0.0
        found.append(Refilled(kind=kind, saved=saved, computed=layers - saved))
    return tuple(found)


@functools.lru_cache(maxsize=1024)
def keys_visited(context: int, tile: int, page: int, window: int | None) -> int:
    """Returns the tokens of all pages that the tiles of a layer fetch to attend to earlier keys, each as a whole.

    Args:
        context: Tokens of the window.
        tile: Tokens of a tile.
        page: Tokens of a page.
        window: Keys that a query sees; None for all.
    """
    total = 0
    for start in range(tile, context, tile):
        first = 0 if window is None else max(0, start - window + 1) // page * page
        total += min(-(-start // page) * page, context) - first
    return total


@functools.lru_cache(maxsize=1024)
def _own_pages(context: int, tile: int, page: int) -> int:
    """Returns the tokens of all pages that hold keys of a tile, summed over the tiles of a layer."""
    ends = (min(-(-(start + tile) // page) * page, context) for start in range(0, context, tile))
    return sum(ends) - sum(start // page * page for start in range(0, context, tile))


def keys_met(context: int, tile: int, window: int | None) -> float:
    """Returns the earlier keys that the tiles of a layer attend to; arguments as for `keys_visited`."""
    tiles = -(-context // tile)
    return (tiles - 1) * min(context / 2, math.inf if window is None else window - 1)


def pages_moved(kind: AttendedShape, work: Workload, plan: StreamPlan) -> tuple[float, float]:
    """Returns the tokens whose keys, and whose key gradients, one layer of a paged kind copies in either direction.

    A tile attends to the pages before it in each forward pass and in the backward pass, which also sends their
    gradients home; a recompute in the backward pass fetches these too. Layers that borrow keys fetch those of the tile
    itself, and add to their gradients.
    """
    n, tile, tiles = work.context, min(plan.tile, work.context), tiles_of(work, plan)
    page = min(plan.key_block, n)
    visited = keys_visited(n, tile, page, kind.window)
    again = repeated_layers(work.spec.layers, plan.checkpoint_every) / work.spec.layers
    recomputed, repeated = (0, 0.0) if plan.stash else (1, again)
    keys = (2 + recomputed + repeated) * visited
    gradients = (2 + recomputed) * visited
    if kind.use == "borrowed":
        own = _own_pages(n, tile, page)
        return keys + (3 + again) * own, gradients + 3 * own
    keys += n  # a layer stores its keys in the forward pass, and takes its tiles' gradients from where they were summed
    if kind.use == "lent":
        return keys, gradients + n
    last = (tiles - 1) * tile
    summed_first = min(-(-last // page) * page, n)  # pages whose first gradients are added to nothing
    return keys + repeated * n, gradients - (1 + recomputed) * summed_first + last
