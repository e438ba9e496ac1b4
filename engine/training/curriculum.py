"""A context that grows over the run (GrowLength, arXiv 2310.00576; sequence length warm-up, arXiv 2108.06084).

An update always trains on the same windows, in the same order. Early in the run each window is cut into shorter
sequences. The update then has more and shorter sequences with the same tokens, and attention costs less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.steps.whole_step import Window

STAGES = ((0.15, 8), (0.35, 4), (0.6, 2))
"""(share of the updates, pieces per window) for each stage up to that share; afterwards windows stay whole."""
SHORTEST = 64
"""Least tokens of a piece."""


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """Stages over a run of `total_steps` updates with windows of `context` tokens."""

    context: int
    total_steps: int

    def length(self, step: int) -> int:
        """Returns the tokens of the longest sequence in the update after `step` updates."""
        share = step / max(1, self.total_steps)
        pieces = next((count for until, count in STAGES if share < until), 1)
        return max(-(-self.context // pieces), min(SHORTEST, self.context))

    def cut(self, windows: Sequence[Window], step: int) -> list[Window]:
        """Cuts windows into the sequences of the update after `step` updates; drops a rest without targets.

        A window whose only label is the first token of a piece, which nothing predicts, stays whole.
        """
        length = self.length(step)
        found: list[Window] = []
        for window in windows:
            parts = (window.part(start, start + length) for start in range(0, len(window), length))
            found += [part for part in parts if part.targets] or [window]
        return found
