"""Ring buffer for keys and values of a sliding-window layer. Pure arithmetic, which the planner uses too.

A query sees the `window` keys up to its own, so a tile reads only the `window - 1` positions before it. Later tiles
therefore read at most the last `window - 1` positions of any tile. The ring has one slot for each earlier tile that a
tile's window reaches, and one for the tile itself, whose gradients stay there until its backward.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.models.spec import ModelSpec


@dataclass(frozen=True)
class WindowRing:
    """Tile t takes slot t mod `places`, which holds its last `kept` tokens in order."""

    window: int
    "Keys that a query sees, its own included."
    tile: int
    "Tokens a tile."

    @property
    def reach(self) -> int:
        """Number of earlier tiles that a tile's window reaches."""
        return -(-(self.window - 1) // self.tile)

    @property
    def kept(self) -> int:
        """Last tokens of a tile that later tiles read."""
        return min(self.tile, self.window - 1)

    @property
    def places(self) -> int:
        """Number of tiles held at once."""
        return self.reach + 1

    @property
    def rows(self) -> int:
        """Tokens that the ring holds: fewer than window + 2 tiles."""
        return self.places * self.kept


@functools.lru_cache(maxsize=256)
def ring_for(window: int | None, tile: int, context: int) -> WindowRing | None:
    """Returns the ring of a layer; None if it has no window, or if the whole context's keys are no larger.

    Args:
        window: Keys that a query of the layer sees; None for all before it.
        tile: Tokens per tile.
        context: Tokens that the buffers hold.
    """
    if window is None or window + tile >= context:
        return None
    ring = WindowRing(window, tile)
    return ring if ring.rows < context else None


def layers_of_ring(spec: ModelSpec, tile: int, context: int) -> tuple[int, WindowRing | None]:
    """Returns the number of a model's layers that use a ring, and the ring; arguments as in `ring_for`.

    The other layers hold keys and values of the whole context, one layer at a time. So do layers that share keys and
    values: each layer that reads them goes through all tiles.
    """
    ring = ring_for(spec.sliding_window, tile, context)
    if ring is None:
        return 0, None
    windowed = sum(kind.layers for kind in spec.attentions if kind.window is not None and kind.use == "own")
    return (windowed, ring) if windowed else (0, None)
