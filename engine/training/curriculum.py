"""A context that grows over the run (GrowLength, arXiv 2310.00576; sequence length warm-up, arXiv 2108.06084).

An update always trains on the same windows, in the same order. Early in the run each is cut into shorter pieces, each
a sequence of its own: the sequences of an update are then more and shorter, its tokens are the same, and attention
costs less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.steps.whole_step import Window

STAGES = ((0.15, 8), (0.35, 4), (0.6, 2))
"""Up to this share of the updates, windows are cut into so many pieces; afterwards they stay whole."""
SHORTEST = 64
"""Tokens that a piece keeps at least."""


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """The stages over a run of `total_steps` updates with windows of `context` tokens."""

    context: int
    total_steps: int

    def length(self, step: int) -> int:
        """Tokens in the longest sequence of the update after `step` updates."""
        share = step / max(1, self.total_steps)
        pieces = next((count for until, count in STAGES if share < until), 1)
        return max(-(-self.context // pieces), min(SHORTEST, self.context))

    def cut(self, windows: Sequence[Window], step: int) -> list[Window]:
        """The sequences that the update after `step` updates trains on; a rest that predicts nothing is left out."""
        length = self.length(step)
        return [
            piece
            for window in windows
            for start in range(0, len(window), length)
            if (piece := window.part(start, start + length)).targets
        ]
