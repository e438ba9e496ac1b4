"""Tracks the part of the x axis in view: all of it, or a stretch to zoom and pan."""

from __future__ import annotations

from dataclasses import dataclass

CLOSEST = 1e-4
"""Share of the whole axis below which zooming in stops."""


@dataclass(frozen=True)
class Viewport:
    """A stretch of the axis. Immutable, so that a chart can tell whether it moved."""

    span: float | None = None
    "Length of the stretch; None shows everything."
    end: float | None = None
    "Right edge; None follows the newest point."

    def window(self, low: float, high: float) -> tuple[float, float]:
        """Returns the edges in view for data between low and high."""
        if self.span is None or self.span >= high - low:
            return low, high
        end = high if self.end is None else min(high, max(low + self.span, self.end))
        return end - self.span, end

    def zoomed(self, factor: float, low: float, high: float, anchor: float = 1.0) -> Viewport:
        """Scales the stretch by `factor`; the point at `anchor` (0 left, 1 right) stays in place."""
        left, right = self.window(low, high)
        whole, span = high - low, (right - left) * factor
        if whole <= 0 or span >= whole:
            return Viewport()
        span = max(span, whole * CLOSEST)
        fixed = left + (right - left) * anchor
        return _stretch(span, fixed + span * (1.0 - anchor), low, high)

    def moved(self, share: float, low: float, high: float) -> Viewport:
        """Moves the stretch by a share of its length, to the right if positive."""
        left, right = self.window(low, high)
        if self.span is None or right - left >= high - low:
            return Viewport()
        span = right - left
        return _stretch(span, max(low + span, right + share * span), low, high)


def _stretch(span: float, end: float, low: float, high: float) -> Viewport:
    end = max(end, low + span)
    # At the newest point, the view follows it.
    return Viewport(span, None if end >= high - 1e-9 * (high - low) else end)
