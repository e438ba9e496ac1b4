"""The ring that holds keys and values of a layer with a sliding window. Pure arithmetic: the planner counts with it.

A query sees the `window` keys up to its own, so a tile reads the `window - 1` positions before it and no others. Of any
tile, later tiles therefore read its last `window - 1` positions at most. The ring has one place for each tile that a
tile's window reaches, and one for the tile itself, whose gradients wait there for their turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.models.spec import ModelSpec


@dataclass(frozen=True)
class WindowRing:
    """Tile t has place t mod `places`; positions of its last `kept` tokens lie there in order."""

    window: int
    "Keys that a query sees, its own included."
    tile: int
    "Tokens a tile."

    @property
    def reach(self) -> int:
        """Tiles before a tile that its window reaches."""
        return -(-(self.window - 1) // self.tile)

    @property
    def kept(self) -> int:
        """Tokens of a tile that later tiles read: its last ones."""
        return min(self.tile, self.window - 1)

    @property
    def places(self) -> int:
        """Tiles that are held at once."""
        return self.reach + 1

    @property
    def rows(self) -> int:
        """Tokens that the ring holds: fewer than window + 2 tiles."""
        return self.places * self.kept


def ring_for(window: int | None, tile: int, context: int) -> WindowRing | None:
    """The ring of a layer; None where the keys of the whole context take no more, or the layer has no window.

    Args:
        window: Keys that a query of the layer sees; None for all before it.
        tile: Tokens a tile.
        context: Tokens that the buffers are made for.
    """
    if window is None or window + tile >= context:
        return None
    ring = WindowRing(window, tile)
    return ring if ring.rows < context else None


def layers_of_ring(spec: ModelSpec, tile: int, context: int) -> tuple[int, WindowRing | None]:
    """How many layers of a model are held in a ring, and the ring; arguments as in `ring_for`.

    The others' keys and values of the whole context are held, a layer at a time.
    """
    ring = ring_for(spec.sliding_window, tile, context) if spec.windowed_layers else None
    return (0, None) if ring is None else (spec.windowed_layers, ring)
